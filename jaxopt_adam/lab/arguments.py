"""The kinds of arguments that the command takes: each reads a text, or says what was expected and what came."""

import difflib
import stat
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import typer

T = TypeVar("T")

MOST = 1_000_000  # far above any sensible value, and small enough that its square fits into float32
UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def option(parse: Callable[[Any], Any], help: str, metavar: str = "NUMBER", **others: Any) -> Any:  # noqa: A002
    """An option of a command whose text one of these kinds reads."""
    return typer.Option(parser=parse, help=help, metavar=metavar, **others)


def _kind(expected: str, read: Callable[[str], T], fits: Callable[[T], bool]) -> Callable[[Any], T]:
    def parse(given: Any) -> T:
        text = str(given)  # a default is not a text
        try:
            value = read(text)
        except ValueError:
            pass
        else:
            if fits(value):
                return value
        raise typer.BadParameter(f"expected {expected}, got {text!r}")

    return parse


def whole_number(least: int, most: int) -> Callable[[Any], int]:
    """A whole number from `least` to `most`."""
    return _kind(f"a whole number from {least:,} to {most:,}", int, lambda value: least <= value <= most)


size = _kind(f"a number from 0 to {MOST:,}", float, lambda value: 0 <= value <= MOST)
coordinate = _kind(f"a number from {-MOST:,} to {MOST:,}", float, lambda value: -MOST <= value <= MOST)
# In float32 too, in which the command computes.
learning_rate = _kind(f"a number above 0, at most {MOST:,}", float, lambda value: bool(0 < np.float32(value) <= MOST))
decay = _kind("a decay in [0, 1)", float, lambda value: bool(0 <= np.float32(value) < 1))


def _with_unit(text: str) -> float:
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    return float(digits) * UNITS.get(unit, float("nan"))


number_of_parameters = _kind(
    "a number from 1 to 1e+15, such as 7e9, or 350M or 7B with one of the units k, M, B and T",
    _with_unit,
    lambda value: 1 <= value <= 1e15,
)
"""The number that a text such as 350M or 7e9 stands for."""


def known(names: Collection[str]) -> Callable[[str], str]:
    """One of these names; the error lists them."""

    def parse(name: str) -> str:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise typer.BadParameter(f"{name!r} is unknown{hint}; known are {', '.join(names)}")
        return name

    return parse


def new_folder(given: Any) -> Path:
    """A folder that need not be there. A text that starts with a hyphen is the next option."""
    text = str(given)
    if not text or text.startswith("-"):
        raise typer.BadParameter(f"expected a folder, got {text!r}")
    return Path(text)


def folder(given: Any) -> Path:
    """A folder that is there."""
    path = new_folder(given)
    try:
        reason = "" if stat.S_ISDIR(path.stat().st_mode) else "which is a file"
    except FileNotFoundError:
        reason = "which does not exist"
    except OSError as error:
        reason = f"which cannot be read: {error.strerror}"
    if reason:
        raise typer.BadParameter(f"expected a folder, got {str(path)!r}, {reason}")
    return path
