"""Notes that rules make in `init` for :func:`~jaxopt_adam.describe`: what a state alone does not tell."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

__all__ = ["Note", "note", "noting"]

Note = dict[str, Any]
"""Of a state by name: its `params`, and what the rule was given for them."""

_NOTES: contextvars.ContextVar[list[tuple[Any, Note]] | None] = contextvars.ContextVar("notes", default=None)


def note(state: Any, **what: Any) -> Any:
    """`state`, of which a note is made if somebody asked for notes; of several the later ones count."""
    notes = _NOTES.get()
    if notes is not None:
        notes.append((state, what))
    return state


@contextlib.contextmanager
def noting() -> Iterator[list[tuple[Any, Note]]]:
    """A context in which notes are made, and the list that they go to."""
    notes: list[tuple[Any, Note]] = []
    token = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(token)
