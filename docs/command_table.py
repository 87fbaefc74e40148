"""The documentation's tables of the command line: what a command does and each argument that it takes."""

import re

from typer import Context
from typer.main import get_command

from jaxopt_adam.lab.commands import app

PROGRAM = "jaxopt-adam"


def usage(command: str) -> str:
    """The text of a command and a row for each of its arguments, in MyST's Markdown."""
    found = get_command(app).commands[command]
    context = Context(found, info_name=f"{PROGRAM} {command}")
    # An option within the text as code, in which its two hyphens stay two.
    text = re.sub(r"(?<=\s)--[\w-]+", r"`\g<0>`", " ".join(found.help.split()))
    lines = [text, "", "| argument | what it is |", "|---|---|"]
    for parameter in found.params:
        _, described = parameter.get_help_record(context)
        lines.append(f"| `{parameter.opts[-1]}` | {described} |")
    return "\n".join(lines)
