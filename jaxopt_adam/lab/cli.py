"""The command ``jaxopt-adam``: its messages and exit codes."""

import os
import sys
from typing import NoReturn

from jaxopt_adam.lab import interrupt, streams

_LAB = {"matplotlib", "plotly", "rich", "sklearn", "typer"}
"""The modules of the extra `lab`."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command and exit; a mistake is one line on standard error and exit code 2.

    Args:
        arguments: the arguments after the command's name; None for those of the process.
    """
    streams.prepare()
    try:
        # These imports take seconds. jaxopt_adam_command, where the command starts, lets signals end them.
        import jax
        import typer

        from jaxopt_adam.lab.commands import app
        from jaxopt_adam.lab.data import DataError

        interrupt.listen()
        given = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
        try:
            app(given, prog_name="jaxopt-adam", standalone_mode=False)
            sys.stdout.flush()
        except typer.TyperException as error:
            _fail(error.format_message())
        except (DataError, MemoryError, OverflowError, jax.errors.JaxRuntimeError) as error:
            _fail(str(error) or type(error).__name__)
        except BrokenPipeError:
            streams.release()
            sys.exit(1)
        except OSError as error:
            # The errors of files name them.
            where = error.filename2 or error.filename or "standard output"
            _fail(f"{where}: {error.strerror or error}")
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _LAB:
            raise
        _fail(f'{module} is not installed; the command needs the extra lab: pip install "jaxopt-adam[lab]"')
    except (interrupt.Interrupted, KeyboardInterrupt) as end:
        streams.complain("interrupted; nothing was written")
        streams.release()
        # At once, because the normal shutdown of the interpreter crashes while XLA's threads are at work.
        os._exit(128 + (end.args[0] if isinstance(end, interrupt.Interrupted) else 2))
    sys.exit(0)


def _fail(message: str) -> NoReturn:
    streams.complain(message)
    streams.release()
    sys.exit(2)
