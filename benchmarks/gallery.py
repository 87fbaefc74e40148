"""Run the commands of docs/gallery.md and put the output of each below it: python benchmarks/gallery.py [EXAMPLE ...].

With the names of examples, such as `sweep`, only their commands are run. All of them take some minutes.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gallery.md"
RUN = re.compile(r"^```sh\npython (examples/(\w+)\.py[^\n]*)\n```\n\n```text\n.*?^```$", re.MULTILINE | re.DOTALL)
"""A command and the output below it."""


def recorded(found: re.Match[str]) -> str:
    """A command with its output of today."""
    command, name = found.groups()
    if sys.argv[1:] and name not in sys.argv[1:]:
        return found[0]
    plain = {name: value for name, value in os.environ.items() if "COLOR" not in name}
    plain["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, *shlex.split(command)], cwd=ROOT, env=plain, check=True, stdout=subprocess.PIPE, text=True
    )
    # Processes that find each other say so, in each other's lines.
    lines = [line for line in done.stdout.strip().splitlines() if "is connected to" not in line]
    print(command, *lines, sep="\n", flush=True)
    return "\n".join([f"```sh\npython {command}\n```\n\n```text", *lines, "```"])


if __name__ == "__main__":
    PAGE.write_text(RUN.sub(recorded, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
