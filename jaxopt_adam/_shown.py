"""Values in error messages: in full if they are short, and arrays by their shapes and dtypes."""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer

_LONGEST = 200


class _Text:
    """A stand-in for an array in a container, whose `repr` is a given text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def shown(value: Any) -> str:
    """The value and its type, in words for an error."""
    return f"{brief(value)} ({type(value).__name__})"


def brief(value: Any) -> str:
    """The `repr` of a value, with arrays by shape and dtype, and cut off where it is long."""
    if _is_large(value):
        return f"an array of shape {np.shape(value)} and dtype {value.dtype}"
    leaves, tree = jax.tree.flatten(value)
    if any(map(_is_large, leaves)):
        value = jax.tree.unflatten(tree, [_Text(_array(leaf)) if _is_large(leaf) else leaf for leaf in leaves])
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _array(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, np.shape(leaf)))}]"


def _is_large(value: Any) -> bool:
    """True for an array with axes whose values are known; a tracer has a short text of its own."""
    is_array = isinstance(value, (np.ndarray, jax.Array)) and not isinstance(value, Tracer)
    return is_array and value.ndim > 0
