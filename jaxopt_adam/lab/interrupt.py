"""Ctrl-C, and being told to end: an exception at the next quiet moment, so that what is unfinished is cleared away."""

import signal

_received: list[int] = []


class Interrupted(BaseException):
    """The process was told to end; its argument is the signal's number."""


def listen() -> None:
    """Have the signals that end a process noted for :func:`check`.

    An exception out of the handler itself would be lost, and its traceback printed, if the interpreter happened to be
    in a callback, such as JAX's for the garbage collector. Only the second signal raises at once.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _receive)


def check() -> None:
    """Raise :class:`Interrupted` if a signal has come."""
    if _received:
        raise Interrupted(_received[0])


def _receive(number: int, _: object) -> None:
    _received.append(number)
    if len(_received) > 1:
        raise Interrupted(number)
