"""The command ``jaxopt-adam``: its messages and exit codes."""

import os
import sys
from typing import NoReturn

from jaxopt_adam.lab import interrupt

_LAB = {"matplotlib", "plotly", "rich", "sklearn", "typer"}
"""The modules of the extra `lab`."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command and exit; a mistake is one line on standard error and exit code 2.

    Args:
        arguments: the arguments after the command's name; None for those of the process.
    """
    interrupt.listen()
    try:
        # These imports take seconds. Here they can be interrupted like everything else.
        import jax
        import typer

        from jaxopt_adam.lab.commands import app
        from jaxopt_adam.lab.data import DataError

        interrupt.check()
        given = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
        try:
            app(given, prog_name="jaxopt-adam", standalone_mode=False)
        except typer.TyperException as error:
            _fail(error.format_message())
        except (DataError, MemoryError, OverflowError, jax.errors.JaxRuntimeError) as error:
            _fail(str(error) or type(error).__name__)
        except OSError as error:
            where = error.filename2 or error.filename
            _fail(f"{where}: {error.strerror}" if where and error.strerror else str(error))
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _LAB:
            raise
        _fail(f'{module} is not installed; the command needs the extra lab: pip install "jaxopt-adam[lab]"')
    except interrupt.Interrupted as end:
        print("jaxopt-adam: interrupted; nothing was written", file=sys.stderr)  # noqa: T201
        sys.stdout.flush()
        sys.stderr.flush()
        # At once, because the normal shutdown of the interpreter crashes while XLA's threads are at work.
        os._exit(128 + end.args[0])
    sys.exit(0)


def _fail(message: str) -> NoReturn:
    print(f"jaxopt-adam: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    sys.exit(2)
