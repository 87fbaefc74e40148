"""Master weights: parameters in 16 bits, and the further bits of their weights in the state."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import DTypeLike

from jaxopt_adam._hyperparameters import Transformation, transformation, whole
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._trees import Path, fields, leaf_name, refuse_part
from jaxopt_adam._xla import fence, written
from jaxopt_adam.storage._patterns import (
    MAGNITUDE,
    SIGN,
    from_bits,
    from_pattern,
    infinity,
    is_low_precision,
    to_bits,
    to_pattern,
)
from jaxopt_adam.storage._rounding import along_axes, phases
from jaxopt_adam.weights._sums import rounded_sum
from jaxopt_adam.weights._within import BY_POSITION, Move, for_each, in_float32, move_to, remembered, update_within

_SALT = 16
"""A salt that no moment has, so that the roundings of weights and moments are independent."""

_SILVER = np.uint32(1779033703)
"""2³² times the silver ratio's 0.414… = √2 − 1, whose multiples fill the circle about as evenly as the golden ratio's.

The dither of moments in codes uses the golden ratio. With the same ratio a weight would be rounded in step with its
moments: 3,000 equal steps of 1e-5 with moments in 8 bits would end 8 spacings off instead of 3.
"""


class MasterWeightsState(NamedTuple):
    """The state of :func:`master_weights`.

    Attributes:
        inner_state: the state of the inner optimizer.
        correction: for each parameter in bfloat16 or float16, the difference between the weight and the parameter. It
            has the parameter's shape, and is int8 for 24 bits and int16 for 32. For every other parameter it is
            :class:`optax.MaskedNode`.
        step: the number of updates so far, uint32, which determines the dither of 24 bits; it wraps around to 0.
    """

    inner_state: Any
    correction: Any
    step: Array


def _bits(name: str, value: Any) -> int:
    bits = whole(1)(name, value)
    if bits not in (24, 32):
        raise ValueError(f"{name} must be 24 or 32, got {value!r}")
    return bits


@optimizer
def master_weights(inner: Transformation, bits: Annotated[int, _bits] = 24) -> optax.GradientTransformationExtraArgs:
    r"""Master weights: any optimizer, for bfloat16 or float16 parameters, with the bits that rounding drops kept.

    .. math::
        w_{t-1} &= \operatorname{join}(\theta_{t-1}, c_{t-1}) \\
        w_t &= w_{t-1} + u_t(g_t, w_{t-1}) \\
        \theta_t, c_t &= \operatorname{split}(w_t)

    Here u is the update of the inner optimizer, which sees the weights w and the gradients in float32. θ is w rounded
    to the nearest number of the parameter's dtype. The correction c is the rest: 8 or 16 further bits. An update that
    is too small to change θ is not lost but accumulates in c.

    Choose it if bfloat16 or float16 should train as well as float32 does. With ``bits=24`` a bfloat16 weight takes 3
    bytes in all and has 15 fractional bits instead of 7. With ``bits=32`` it takes 4 bytes and *is* the float32 weight,
    bit for bit. A float16 weight has 18 fractional bits instead of 10, or is the float32 weight. Below 2⁻¹⁴ the numbers
    of float16 are evenly spaced. In that range the weights are evenly spaced too: by 2⁻³² with 24 bits, and by 2⁻⁴⁰
    with 32. A weight too large for its dtype becomes infinite, as in a cast. Parameters of other dtypes are updated as
    usual.

    With 24 bits the sum is dithered: each step adds a threshold, a fraction of the spacing, before it rounds down. The
    thresholds are evenly spread over the steps. On average updates of any size therefore count in full, even those that
    float32 would lose. With equal updates the weight is never off by more than a few spacings. The thresholds depend
    only on the step and the position of the element: the same inputs give the same bits on any number of devices. With
    32 bits w is rounded to the nearest, as a float32 is.

    It goes around other transformations: ``master_weights(optax.chain(…))`` and
    ``master_weights(optax.MultiSteps(…).gradient_transformation())`` compute everything in float32.
    :func:`optax.apply_if_finite`, :func:`optax.conditionally_mask` and :func:`optax.conditionally_transform` can only
    be inside, as in ``master_weights(optax.apply_if_finite(…, 3))``. Nothing after it may change its updates. They are
    in float32 and made for the current parameters, and :func:`optax.apply_updates` gives θ exactly only if they are
    unchanged. Parameters that are changed in any other way no longer fit their corrections and are off by at most half
    a unit in their last place. In that case start again with :func:`with_master_params`.

    Args:
        inner: the optimizer, ours or optax's; its updates are to be added to the parameters, so it must have a learning
            rate.
        bits: the bits of a weight, 24 or 32.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`MasterWeightsState`. Its `update` needs `params`.

    Raises:
        TypeError: if `inner` is not an optimizer.
        ValueError: if `bits` is neither 24 nor 32. The optimizer's `update` raises a TypeError if it is inside one of
            the wrappers that can only be used inside of it.

    References:
        Micikevicius et al., Mixed Precision Training, 2018, section 3.1, for weights in float32 beside those of 16
        bits; Zamirai et al., Revisiting BFloat16 Training, 2020, for what is lost without them.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from jaxopt_adam import master_params, master_weights, sgd
        >>> optimizer, params = master_weights(sgd(1e-3)), jnp.ones([], jnp.bfloat16)
        >>> state = optimizer.init(params)
        >>> for _ in range(3):  # each too small to change a bfloat16
        ...     updates, state = optimizer.update(jnp.ones([], jnp.bfloat16), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(params, master_params(params, state).round(4))
        0.996094 0.997
    """
    wrapped = optax.with_extra_args_support(inner)
    dtype = jnp.dtype(jnp.int8 if bits == 24 else jnp.int16)

    def init(params: optax.Params) -> MasterWeightsState:
        def correction(param: Array) -> Array:
            return _split(from_bits(to_bits(param), param.dtype), param.dtype, dtype)[1]

        corrections = for_each(correction, params, optax.MaskedNode())
        return MasterWeightsState(wrapped.init(in_float32(params)), corrections, jnp.zeros([], jnp.uint32))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, MasterWeightsState]:
        inner_state, corrections, step = fields(state, "inner_state", "correction", "step", of=MasterWeightsState)

        def weight(path: Path, param: Array, correction: Any) -> Array:
            return _join(to_bits(param), remembered(path, param, correction, dtype, "state.correction"), param.dtype)

        tree, moves, inner_state = update_within(
            "master_weights", wrapped, updates, inner_state, params, corrections, weight, extra_args
        )
        step = jnp.asarray(step, jnp.uint32)
        pairs = [_step(move, dtype, step) if isinstance(move, Move) else (move, optax.MaskedNode()) for move in moves]
        new_updates, corrections = (jax.tree.unflatten(tree, [pair[i] for pair in pairs]) for i in range(2))
        return new_updates, MasterWeightsState(inner_state, corrections, step + np.uint32(1))

    return optax.GradientTransformationExtraArgs(init, update)


def master_params(params: optax.Params, state: optax.OptState) -> optax.Params:
    """The weights in float32 that parameters and a state of :func:`master_weights` represent together.

    Args:
        params: the parameters that go with the state.
        state: a state of :func:`master_weights`, or one that holds it, such as a chain's.

    Returns:
        A tree like `params`, whose leaves of bfloat16 and float16 have become float32.

    Raises:
        ValueError: if `state` holds no state of :func:`master_weights`, or several that correct the same leaf, or if
            `params` have another tree or other shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_adam import adamw, master_params, master_weights, with_master_params
        >>> params, state = with_master_params(jnp.float32(0.1), master_weights(adamw(1e-3), bits=32))
        >>> print(params, master_params(params, state))
        0.100098 0.1
    """
    corrections = _found(params, state)

    def weight(path: Path, param: Any) -> Any:
        if not is_low_precision(param):
            return param
        correction = corrections.get(path)
        if correction is None:
            return from_bits(to_bits(jnp.asarray(param)), param.dtype)
        dtype = jnp.dtype(jnp.int8 if correction.dtype == jnp.int8 else jnp.int16)
        return _join(
            to_bits(jnp.asarray(param)),
            remembered(path, param, correction, dtype, "the correction"),
            param.dtype,
        )

    return jax.tree_util.tree_map_with_path(weight, params)


def with_master_params(
    params: optax.Params, optimizer: optax.GradientTransformation, dtype: DTypeLike = jnp.bfloat16
) -> tuple[optax.Params, Any]:
    """Make parameters and a state from weights in float32, with all the bits that :func:`master_weights` keeps.

    Args:
        params: the weights. Those leaves in float32 that `optimizer` has corrections for become parameters of `dtype`;
            all others stay as they are, such as leaves that :func:`optax.masked` or :func:`optax.partition` excludes.
        optimizer: a :func:`master_weights`, or an optimizer that holds one, such as a chain.
        dtype: bfloat16 or float16.

    Returns:
        The parameters and the state to start from. :func:`master_params` of the two gives `params` again: exactly with
        32 bits, and rounded to the nearest with 24.

    Raises:
        TypeError: if `optimizer` is not an optimizer.
        ValueError: if it holds no :func:`master_weights`, or several for the same leaf, or if `dtype` is neither
            bfloat16 nor float16.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_adam import adamw, master_weights, with_master_params
        >>> params, state = with_master_params({"weight": jnp.full(3, 0.1)}, master_weights(adamw(1e-3)))
        >>> print(params["weight"].dtype, state.correction["weight"])
        bfloat16 [-51 -51 -51]
    """
    transformation("optimizer", optimizer)
    low = jnp.dtype(dtype)
    if low not in (jnp.bfloat16, jnp.float16):
        raise ValueError(f"dtype must be bfloat16 or float16, got {low}")

    def is_full(leaf: Any) -> bool:
        return getattr(leaf, "dtype", None) == jnp.float32

    narrow = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, low) if is_full(leaf) else leaf, params)
    places = _found(params, jax.eval_shape(optimizer.init, narrow))
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    corrections, parameters = {}, []
    for path, leaf in leaves:
        if is_full(leaf) and path in places:
            bits, corrections[path] = _split(jnp.asarray(leaf), low, places[path].dtype)
            leaf = jax.lax.bitcast_convert_type(bits, low)
        parameters.append(leaf)

    # The inner optimizer starts from the weights themselves, and the wrappers around it from the parameters.
    exact = iter(_states(optimizer.init(params)))

    def started(node: Any) -> Any:
        if not _is_state(node):
            return node
        # Not where a correction is masked: another state has that one.
        own = jax.tree_util.tree_map_with_path(
            lambda path, correction: corrections.get(path, correction), node.correction
        )
        return MasterWeightsState(next(exact).inner_state, own, node.step)

    parameters = jax.tree.unflatten(tree, parameters)
    return parameters, jax.tree.map(started, optimizer.init(parameters), is_leaf=_is_state)


def _step(move: Move, dtype: np.dtype, step: Array) -> tuple[Array, Array]:
    """The update of one leaf, and its new correction."""
    low, shape = move.param.dtype, move.param.shape
    # Never negative, as `fence` asks of a count.
    count = jax.lax.bitcast_convert_type(step >> 1, jnp.int32)
    pattern = to_pattern(move.weight + move.change, low)
    if dtype == jnp.int8:
        refuse_part(move.path, move.change, BY_POSITION)
        pattern = rounded_sum(move.weight, move.change, low, _shift(pattern, low), _dither(step, count, shape))
    bits, correction = _parts(written(count, pattern), dtype)
    return move_to(bits, move.param), correction


def _shift(pattern: Array, low: np.dtype) -> Array:
    """The number of last bits that rounding takes from a pattern, for a correction of 8 bits: 8, or 9.

    It is 9 from 31/32 of a power of two up to that power, unless the pattern needs no rounding. The numbers are then
    equally spaced on both sides of a power of two, where weights such as a normalization's scale start. If the spacing
    changed there, the thresholds at which a weight crosses the power would be correlated with the next ones. A weight
    that stays near would then drift: by 3 % of its distance at a rate of 1e-6.
    """
    behind = 23 if low == jnp.bfloat16 else 26
    near = (pattern >> (behind - 4) & 15) == 15
    return jnp.where(near & ((pattern & np.uint32(0xFF)) != 0), np.uint32(9), np.uint32(8))


def _dither(step: Array, count: Array, shape: tuple[int, ...]) -> Array:
    """The thresholds of one step, the same on any layout of devices."""
    vectors = phases(shape, _SALT)
    if len(shape) > 1:
        # Otherwise the compiler would compute the hash of a position anew for each element.
        vectors = fence(count, vectors)
    return sum(along_axes(vectors, len(shape)), step * _SILVER)


def _split(weight: Array, low: np.dtype, dtype: np.dtype) -> tuple[Array, Array]:
    """A weight in float32 as the bits of a number of dtype `low` and a correction of `dtype`."""
    pattern = to_pattern(weight, low)
    if dtype == jnp.int8:  # to the nearest, and of two that are as near to the even one
        pattern = (pattern + np.uint32(0x7F) + (pattern >> 8 & 1)) & ~np.uint32(0xFF)
    return _parts(pattern, dtype)


def _parts(pattern: Array, dtype: np.dtype) -> tuple[Array, Array]:
    """The bits of the number nearest to a pattern, and the difference of the pattern from it, as a correction."""
    # Of two that are as near to the larger one, since int16 goes to −2¹⁵ but not to 2¹⁵.
    bits = (pattern + np.uint32(0x8000)) >> 16
    rest = jax.lax.bitcast_convert_type(pattern - (bits << 16), jnp.int32) >> _dropped(dtype)
    # A zero has only larger magnitudes next to it, so there the correction's sign is free to be the weight's: updates
    # cannot change that of a zero, and may change it where they are zero themselves.
    rest = jnp.where(((bits & np.uint32(0x7FFF)) == 0) & (pattern >= SIGN), ~rest, rest)
    return bits.astype(jnp.uint16), rest.astype(dtype)


def _join(bits: Array, correction: Array, low: np.dtype) -> Array:
    """The weight, in float32, that :func:`_split` divides into these two."""
    dropped = _dropped(correction.dtype)
    rest = correction.astype(jnp.int32)
    upper = bits.astype(jnp.uint32) << 16
    magnitude = upper & MAGNITUDE
    # Nothing is beyond infinity, though a correction of something else may say so.
    rest_of_number = jnp.where(magnitude == infinity(low), jnp.minimum(rest, 0), rest) << dropped
    number = upper + jax.lax.bitcast_convert_type(rest_of_number, jnp.uint32)
    rest_of_zero = jnp.where(rest < 0, ~rest, rest) << dropped
    zero = jax.lax.bitcast_convert_type(rest_of_zero, jnp.uint32) | jnp.where(rest < 0, SIGN, np.uint32(0))
    return from_pattern(jnp.where(magnitude == 0, zero, number), low)


def _dropped(dtype: np.dtype) -> int:
    """The number of a pattern's last bits that a correction does not keep."""
    return 16 - jnp.iinfo(dtype).bits


def _found(params: optax.Params, state: optax.OptState) -> dict[Path, Any]:
    """The corrections in `state` by the paths of their parameters."""
    states = _states(state)
    if not states:
        raise ValueError(f"state must be or hold the state of master_weights, got {type(state).__name__}")
    found: dict[Path, Any] = {}
    for each in states:
        corrections, tree = jax.tree_util.tree_flatten_with_path(each.correction, is_leaf=_is_masked)
        try:
            tree.flatten_up_to(params)
        except ValueError as error:
            raise ValueError(f"params must have the tree of the state's correction: {error}") from None
        for path, correction in corrections:
            if _is_masked(correction):
                continue
            if path in found:
                raise ValueError(f"{leaf_name(path)}: state holds several corrections of it; pass the part with one")
            found[path] = correction
    return found


def _states(state: optax.OptState) -> list[MasterWeightsState]:
    return [node for node in jax.tree.leaves(state, is_leaf=_is_state) if _is_state(node)]


def _is_state(node: Any) -> bool:
    return isinstance(node, MasterWeightsState)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)
