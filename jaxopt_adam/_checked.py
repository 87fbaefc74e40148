"""An optimizer with assertions on the values of its steps that can be switched on."""

import typing
from collections.abc import Iterator
from typing import Any

import jax
import optax
from jax.tree_util import keystr
from jax.typing import ArrayLike

from jaxopt_adam import _hyperparameters as kinds
from jaxopt_adam._optimizer import Optimizer, optimizer

# The moments that are averages, sums or maxima of magnitudes or of their squares, as the rules here and optax name
# them: a rule takes their root or divides by them.
_NONNEGATIVE = {"nu", "nu_max", "n", "sum_of_squares", "e_g", "e_x", "v_row", "v_col"}
_DECAYS = (
    kinds.Decay,
    kinds.Decays,
    kinds.OptionalDecay,
    kinds.PositiveDecay,
    kinds.ScheduledDecay,
    kinds.TwoDecays,
)


@optimizer
def checked(optimizer: kinds.Transformation) -> optax.GradientTransformationExtraArgs:
    r"""The same optimizer with assertions on the values in each of its steps.

    The state and the updates are those of `optimizer`. A run can therefore continue with or without the assertions. At
    step :math:`t` the assertions are, in this order:

    - for every decay :math:`\beta` in [0, 1) of an :class:`~jaxopt_adam.Optimizer`:

      .. math:: 0 < c_t = 1 - \beta^t \le 1 \quad\text{and}\quad
                \frac{\beta c_{t-1} + (1 - \beta) \cdot 1}{c_t} = 1

      within the rounding of the arithmetic. The numerator is the next value of an average of the constant 1 that
      started at zero. By induction the debiased average of a constant is therefore the constant, at every step;
    - every gradient is finite. Rules with moments of squares or magnitudes (see below) clip gradients to what they can
      square, about 9e18 in float32. For these rules every gradient must also be within that limit;
    - every `count` in the state rises by one, or stays at int32's maximum;
    - no element of a moment of squares or magnitudes (the fields `nu`, `nu_max`, `n`, `sum_of_squares`, `e_g`, `e_x`,
      `v_row` and `v_col` of a state) is negative or NaN;
    - every update is finite.

    While a step is traced, chex asserts that a bias correction is one number for each decay, in float32 at least.

    In compiled code (:func:`jax.jit`, a loop of :mod:`jax.lax`) the assertions are off, unless it is run through
    :func:`chex.chexify` or :func:`jax.experimental.checkify.checkify`: as ``chex.chexify(jax.jit(step))``, or as
    ``jax.jit(checkify.checkify(step))``. Where nothing is compiled they are on.

    With the assertions off, the compiled program is exactly the one without `checked` and is called as fast. Only the
    tracing takes somewhat longer. With the assertions on, each array is read once more for each assertion on it, and
    XLA may fuse the arithmetic differently, and so round differently.

    Wrap an optimizer that makes a step at every call, as in ``optax.MultiSteps(checked(adam(0.1)), 8)``. The other way
    round, the assertion on `count` would fail, because `count` does not rise at every call. A transformation that uses
    one of the field names above for something else fails too. :func:`optax.contrib.reduce_on_plateau` does so with
    `count`, and :func:`optax.contrib.sophia` with `nu`.

    Args:
        optimizer: an :class:`~jaxopt_adam.Optimizer` or an :class:`optax.GradientTransformation`, a chain of them
            included. The decays that are checked are those of an Optimizer, and of Optimizers within it, except
            schedules.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with the state of `optimizer`. If an assertion fails, a ValueError names the
        leaf and the step of the first failure. `update` raises it, or chexify or checkify does if the code runs through
        them. The step is counted from 1, and is left out if the state has no `count`.

    Raises:
        TypeError: if `optimizer` is not a gradient transformation.

    Example:
        >>> import jax
        >>> from jax.experimental import checkify
        >>> from jaxopt_adam import adam, checked
        >>> optimizer = checked(adam(0.1))
        >>> state = optimizer.init({"w": jax.numpy.zeros(3)})
        >>> gradients = {"w": jax.numpy.array([1.0, jax.numpy.nan, jax.numpy.inf])}
        >>> error, _ = checkify.checkify(jax.jit(optimizer.update))(gradients, state)
        >>> print(error.get())
        leaf ['w'] at step 1: the gradient is not finite in 2 of 3 elements (`check` failed)
    """
    inner = optax.with_extra_args_support(optimizer)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        # Here, since nothing else needs what defines an operation of JAX, which is slow to import.
        from jaxopt_adam._assertions import SeenStep, watched

        new_updates, new_state = inner.update(updates, state, params, **extra_args)
        seen = SeenStep(
            updates=new_updates,
            gradients=updates,
            decays=list(_decays(optimizer)),
            counts=_fields(state, {"count"}, updates),
            new_counts=_fields(new_state, {"count"}, updates),
            moments=_fields(new_state, _NONNEGATIVE, updates),
        )
        return watched(seen), new_state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _decays(made: Any) -> Iterator[tuple[str, ArrayLike]]:
    """The decays of an optimizer and of the optimizers within it, except schedules."""
    for part in jax.tree.leaves(made, is_leaf=lambda node: isinstance(node, Optimizer)):
        if isinstance(part, Optimizer):
            hints = typing.get_type_hints(part._factory, include_extras=True)
            for name, value in part.hyperparameters.items():
                if hints.get(name) in _DECAYS:
                    for path, decay in jax.tree.leaves_with_path(value, is_leaf=callable):
                        if not callable(decay):
                            yield f"{part._factory.__name__}'s {name}{keystr(path)}", decay
                else:
                    yield from _decays(value)


def _fields(state: optax.OptState, names: set[str], gradients: optax.Updates) -> dict[str, Any]:
    """The fields called one of `names` of the states within `state`.

    A part with the tree of the gradients is not searched: it is a moment, and a `nu` in it is the name of a parameter.
    """

    def is_moment(node: Any) -> bool:
        try:
            jax.tree.structure(node, is_leaf=_is_left_out).flatten_up_to(gradients)
        except ValueError:
            return False
        return True

    nodes = jax.tree.leaves_with_path(state, is_leaf=is_moment)
    return {keystr(path): node for path, node in nodes if path and getattr(path[-1], "name", None) in names}


def _is_left_out(node: Any) -> bool:
    """True for the entry of a leaf that a moment leaves out."""
    return node is None or isinstance(node, optax.MaskedNode)
