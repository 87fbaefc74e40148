"""Standard output and standard error: in any encoding, and where they are closed or full."""

import codecs
import contextlib
import io
import os
import re
import sys
from pathlib import Path

_ASCII = str.maketrans(
    {"×": "x", "±": "+-", "β": "beta", "…": "..."} | dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-", strict=True))
)
"""The ASCII for signs in the command's texts that the encoding of a stream may lack."""


def prepare() -> None:
    """Make both streams take every text, and let what is written to a closed one vanish.

    A sign that the encoding of a stream lacks is written in ASCII, or as an escape sequence. Python has None for a
    stream that was closed before it started, and prints what is meant for standard error on standard output then.
    """
    codecs.register_error("jaxopt-adam", _in_ascii)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="jaxopt-adam")


def complain(message: str) -> None:
    """Print a message as one line on standard error, if it can be written."""
    with contextlib.suppress(OSError):
        print(f"jaxopt-adam: {' '.join(message.split())}", file=sys.stderr, flush=True)  # noqa: T201


def release() -> None:
    """Write what the streams hold. What cannot be written vanishes.

    Without this the interpreter would try again at its end, and change the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """A handler of :func:`codecs.register_error`: the text in place of what cannot be encoded, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", r"^\g<0>", error.object[error.start : error.end]).translate(_ASCII)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end
