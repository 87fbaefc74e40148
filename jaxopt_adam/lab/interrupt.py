"""Signals that end the process: an exception at the next safe point, so that unfinished files are removed."""

import signal

_received: list[int] = []


class Interrupted(BaseException):
    """The process was told to end; its argument is the signal's number."""


def listen() -> None:
    """Record the signals that end a process, for :func:`check`.

    The handler of the first signal does not raise. If the interpreter happened to be in a callback, such as JAX's for
    the garbage collector, the exception would be lost and its traceback printed. The second signal raises at once.
    A signal that is ignored, as SIGHUP is by nohup, stays so.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _receive)


def check() -> None:
    """Raise :class:`Interrupted` if a signal has come."""
    if _received:
        raise Interrupted(_received[0])


def _receive(number: int, _: object) -> None:
    _received.append(number)
    if len(_received) > 1:
        raise Interrupted(number)
