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
    lines = [_marked(found.help), "", "| argument | what it is |", "|---|---|"]
    for parameter in found.params:
        _, text = parameter.get_help_record(context)
        lines.append(f"| `{parameter.opts[-1]}` | {_marked(text)} |")
    return "\n".join(lines)


def _marked(text: str) -> str:
    """The text in one line, with options as code: elsewhere their two hyphens would become a dash."""
    return re.sub(r"(?<!\S)--[\w-]+", r"`\g<0>`", " ".join(text.split()))
