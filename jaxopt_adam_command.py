"""The entry point of the command ``jaxopt-adam``, which a signal can end from its first moment.

It lies outside of the package and imports nothing large. The package's own imports take seconds. An exception that a
signal raises meanwhile would end in a traceback, or get lost in a callback of JAX's.
"""

import os
import signal


def main() -> None:
    """Run the command; until everything is imported, a signal ends it at once."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)

    from jaxopt_adam.lab.cli import main as run

    run()


def _end(number: int, _: object) -> None:
    try:
        os.write(2, b"jaxopt-adam: interrupted; nothing was written\n")
    finally:
        os._exit(128 + number)
