"""Notes that rules make in `init` for :func:`~jaxopt_adam.describe`: what a state alone does not tell."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

Note = dict[str, Any]
"""The note of a state: its `params` and the arguments of its rule, by name."""

_NOTES: contextvars.ContextVar[list[tuple[Any, Note]] | None] = contextvars.ContextVar("notes", default=None)


def note(state: Any, **what: Any) -> Any:
    """`state` itself; within :func:`noting` a note of it is made. Of several notes of one name the first counts."""
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


def by_state(notes: list[tuple[Any, Note]]) -> dict[int, Note]:
    """The notes of each state together, by its `id`."""
    together: dict[int, Note] = {}
    for state, what in notes:
        of_state = together.setdefault(id(state), {})
        of_state.update({name: value for name, value in what.items() if name not in of_state})
    return together


def noted_states(optimizer: Any, params: Any) -> tuple[Any, list[Note | None]]:
    """The structure of an optimizer's state, with the states that have moments as leaves; and their notes, or None."""
    found: list[tuple[Any, list[Note | None]]] = []

    def look(params: Any) -> None:
        # Within the trace, where a state is the object that its rule made a note of.
        with noting() as notes:
            state = optimizer.init(params)
        # Of a chain or a wrapper there is a note too, but the states within are what counts.
        of_state = {key: what for key, what in by_state(notes).items() if what.get("moments")}
        for what in of_state.values():
            what["params"] = jax.tree.map(_struct, what["params"])
        leaves, structure = jax.tree.flatten(state, is_leaf=lambda node: id(node) in of_state)
        found.append((structure, [of_state.get(id(leaf)) for leaf in leaves]))

    jax.eval_shape(look, params)
    return found[0]


def _struct(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
