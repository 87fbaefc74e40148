r"""Exponentially weighted averages and their bias correction.

An average that starts at zero,

.. math:: m_t = \beta m_{t-1} + (1 - \beta) x_t, \qquad m_0 = 0,

has weights that sum to :math:`1 - \beta^t` and not to one. Its first values are too small by that factor.
Dividing by the factor (:func:`debias`) makes it a proper average from the first value on.
"""

import contextvars
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from jaxopt_adam._trees import arithmetic_dtype, real_dtype
from jaxopt_adam._xla import divisor, fused_sum, quick_or_careful


class Shares(NamedTuple):
    """A decay as two numbers, for an :func:`ema` whose decay is computed anew in each step.

    Attributes:
        kept: β, the weight of the average so far.
        added: 1 − β, the weight of the new value, with the digits that it would lose if it were computed from a
            rounded β.
    """

    kept: float | np.ndarray | Array
    added: float | np.ndarray | Array

    @classmethod
    def of(cls, decay: ArrayLike) -> "Shares":
        """The shares of a decay, in its own dtype but float32 at least."""
        if isinstance(decay, jax.Array):
            decay = decay.astype(arithmetic_dtype(_inexact(decay.dtype)))
        else:
            decay = np.asarray(decay, np.float64)
        return cls(decay, 1 - decay)


def ema(average: ArrayLike, value: ArrayLike, decay: ArrayLike | Shares) -> Array:
    r"""One step of an exponentially weighted average.

    .. math:: \text{decay} \cdot \text{average} + (1 - \text{decay}) \cdot \text{value}

    evaluated as :math:`\text{average} + (1 - \text{decay}) (\text{value} - \text{average})` for decays of one half or
    more, and as :math:`\text{value} + \text{decay} (\text{average} - \text{value})` below. On paper the three are
    equal. In floating point the latter two have weights that sum to one whatever the decay rounds to. An average that
    has reached a constant therefore stays there, and the term with the larger weight loses no digits.

    The bits are the same on any layout of devices. A product that overflows counts as the largest finite number.

    Args:
        average: the average so far, any shape, real or complex.
        value: the new value, of a shape that broadcasts with `average`.
        decay: :math:`\beta` in [0, 1), the weight of the past; a number or an array that broadcasts, or the
            :class:`Shares` of one.

    Returns:
        The new average, in the common dtype of `average` and `value`. `decay` never widens it. The arithmetic is done
        in float32 at least.

    Example:
        >>> from jaxopt_adam import ema
        >>> print(ema(1.0, 2.0, 0.75))
        1.25
    """
    dtype = _inexact(jnp.result_type(average, value))
    if jnp.issubdtype(dtype, jnp.complexfloating):
        parts = (ema(part(average), part(value), decay) for part in (jnp.real, jnp.imag))
        return jax.lax.complex(*parts).astype(dtype)
    compute = arithmetic_dtype(dtype)
    past, new = jnp.asarray(average, compute), jnp.asarray(value, compute)
    kept, added = decay if isinstance(decay, Shares) else Shares.of(decay)
    mostly_past = added <= kept
    if isinstance(mostly_past, (bool, np.bool_)):
        # Known now, so that the compiler need not choose for every leaf.
        (more, less), share = ((past, new), added) if mostly_past else ((new, past), kept)
    else:
        more, less = jnp.where(mostly_past, past, new), jnp.where(mostly_past, new, past)
        share = jnp.where(mostly_past, added, kept)
    share = jnp.asarray(share, compute)
    if ARE_BOUNDED.get():
        # The bound is for the compiler, see `finite_product`; one side of it is enough for that.
        return (more + jnp.minimum(share * (less - more), jnp.finfo(compute).max)).astype(dtype)
    # Twice the share of half the difference, which is the same number and cannot overflow.
    return (more + finite_product(2 * share, 0.5 * less - 0.5 * more)).astype(dtype)


ARE_BOUNDED: contextvars.ContextVar[bool] = contextvars.ContextVar("are_bounded", default=False)
"""True while no difference that :func:`ema` takes can overflow: in a rule whose gradients are :func:`squarable`.

Then fewer operations give the same numbers. The loops of moments in 16, 8 and 4 bits are bound by operations.
"""


def finite_product(one: ArrayLike, other: Array) -> Array:
    """The product of a real and a real or complex number, at most the largest finite one in size; NaN stays NaN.

    The bound has a second use: nothing can merge this multiplication with an addition that follows. A compiler that
    merges them rounds once in place of twice, and whether it does depends on the shape that a device holds. With the
    bound in between, the bits are the same on any layout of devices.
    """
    if jnp.iscomplexobj(other):
        return jax.lax.complex(finite_product(one, other.real), finite_product(one, other.imag))
    product = one * other
    largest = jnp.finfo(product.dtype).max
    return jax.lax.clamp(-largest, product, largest)


def finite_quotient(one: Array, other: ArrayLike) -> Array:
    """The quotient of a real or complex number and a real one, as a :func:`finite_product` with the reciprocal.

    A compiler may take a division by what all elements share for such a multiplication, in one shape and not in
    another.
    """
    return finite_product(1 / jnp.asarray(other), one)


def squarable(value: Array) -> Array:
    """`value` within ±2⁶³ in float32 (in float64 ±2⁵¹¹), whose square is finite; NaN where it is infinite.

    Beyond it a squared gradient would be infinite, and so would its average be, for ever: the element would stand
    still without an error. Within it a rule forgets a single huge gradient as it forgets any other.
    """
    if jnp.iscomplexobj(value):
        return jax.lax.complex(squarable(value.real), squarable(value.imag))
    largest = np.asarray(most_squarable(value.dtype), value.dtype)
    # Infinity minus infinity is NaN. A test of each element costs twice as many operations.
    return jax.lax.clamp(-largest, value, largest) + (value - value)


def debias(average: ArrayLike, decay: ArrayLike, step: ArrayLike) -> Array:
    r"""The debiased value of an :func:`ema` that started at zero: ``average / bias_correction(decay, step)``.

    Args:
        average: an average after `step` values, started at zero; any shape, real or complex.
        decay: its decay, in [0, 1).
        step: the number of values that it has seen, a whole number from 1.

    Returns:
        The debiased average, in the dtype of `average`; computed in float32 at least.

    Example:
        >>> from jaxopt_adam import debias, ema
        >>> print(debias(ema(0.0, 3.0, decay=0.75), decay=0.75, step=1))
        3.0
    """
    dtype = _inexact(jnp.result_type(average))
    compute = arithmetic_dtype(dtype)
    correction = bias_correction(decay, step).astype(real_dtype(compute))
    return (jnp.asarray(average, compute) / correction).astype(dtype)


def bias_correction(decay: ArrayLike, step: ArrayLike) -> Array:
    r""":math:`1 - \text{decay}^{\text{step}}`, right to 2 ulp in float32 for every decay and step.

    Computed as ``1 - decay**step`` in float32 this loses up to 227 ulp for a decay of 0.999 and 2,968 ulp for 0.9999,
    since a power close to one keeps few digits of its distance from one. Here it is :math:`-\operatorname{expm1}(t \log
    \beta)`, in which neither :math:`\log \beta` nor its product with :math:`t` may be rounded to float32 either: both
    are carried as a high and a low part. A decay known as a Python or NumPy number has its logarithm taken in float64;
    a JAX array, traced or not, is taken as the exact float32 number that it is, and the logarithm comes from
    :math:`\log \beta = 2 \operatorname{artanh} \frac{\beta - 1}{\beta + 1}` with the quotient's remainder kept.

    Args:
        decay: :math:`\beta` in [0, 1); a number or an array.
        step: :math:`t`, whole numbers from 1 to 2³¹ − 1, taken on trust (at 0 the result is 0); broadcasts with
            `decay`. There is no derivative with respect to it.

    Returns:
        Array of the broadcast shape, in float32, or in float64 for a float64 decay (which a Python number is when
        ``jax_enable_x64`` is set); there the error is at most 6 ulp.

    Raises:
        ValueError: if `decay` is outside [0, 1) and not traced.

    Example:
        >>> from jaxopt_adam import bias_correction
        >>> print(bias_correction(0.5, 3))
        0.875
    """
    if not isinstance(decay, Tracer):
        exact = np.asarray(decay, np.float64)
        if not np.all((exact >= 0) & (exact < 1)):
            raise ValueError(f"decay must be in [0, 1), got {decay}")
    if isinstance(decay, jax.Array):
        return _bias_correction_of_array(decay.astype(arithmetic_dtype(_inexact(decay.dtype))), step)
    exact = np.asarray(decay, np.float64)
    log = np.log(np.maximum(exact, _SMALLEST))
    if arithmetic_dtype(_inexact(jnp.result_type(decay))) == jnp.float64:
        return -jnp.expm1(log * jnp.asarray(step))
    # Split by NumPy, since XLA would add such constants to each other in an order of its own.
    head = (log.astype(np.float32).view(np.int32) & _HEAD).view(np.float32)
    return _one_minus_power(jnp.asarray(head), jnp.asarray(log - head, jnp.float32), step)


def accumulate(trace: Array, value: Array, decay: ArrayLike) -> Array:
    """One step of momentum's decayed sum, ``value + decay * trace``."""
    return value + finite_product(decay, trace)


def debiasing_weights(
    scale: Array, decay: ArrayLike, step: Array, *, nesterov: bool = False
) -> tuple[Array, Array | None]:
    """The weights with which an average and its newest value add up to `scale` times the debiased average.

    The weight of the newest value is None, unless `nesterov` is true: then the sum is `scale` times what the debiased
    average would become if the newest value came once more. This is Dozat's look ahead. The part of the average is
    debiased for the next step, the part of the newest value for this one.
    """
    correction = bias_correction(decay, step)
    if not nesterov:
        return scale / correction, None
    ahead = bias_correction(decay, optax.safe_increment(step))
    return scale * decay / ahead, scale * (1 - decay) / correction


def weighted(average: Array, value: Array, weight_of_average: Array, weight_of_value: Array | None) -> Array:
    """The sum of an average and its newest value with the weights that :func:`debiasing_weights` gives."""
    if weight_of_value is None:
        return weight_of_average * average
    return finite_product(weight_of_average, average) + finite_product(weight_of_value, value)


def root(square: Array, eps: ArrayLike = 0.0) -> Array:
    """The root of a moment of squares plus `eps`, never quite zero.

    The smallest normal number of the dtype is added too: a moment of zero then gives an update of zero with a
    derivative, and not 0 / 0, even without `eps`. Next to any other moment it is negligible.
    """
    return divisor(jnp.sqrt(square + (jnp.asarray(eps, square.dtype) + jnp.finfo(square.dtype).tiny)))


class Denominator(NamedTuple):
    r"""The denominator of an update, :math:`\sqrt{\nu + \bar\varepsilon} + \varepsilon`.

    Attributes:
        eps: ε.
        eps_root: :math:`\bar\varepsilon`.
    """

    eps: ArrayLike
    eps_root: ArrayLike = 0.0

    def __call__(self, nu: Array) -> Array:
        """The denominator for a second moment."""
        return root(nu, self.eps_root) + self.eps

    def times(self, correction: Array) -> "Denominator":
        """√correction times the denominator of ν / correction, as a function of ν itself."""
        return Denominator(self.eps * jnp.sqrt(correction), self.eps_root * correction)


@functools.cache
def most_squarable(dtype: DTypeLike) -> float:
    """The largest size of a real number that :func:`squarable` leaves as it is."""
    return 2.0 ** ((int(jnp.finfo(dtype).maxexp) - 2) // 2)


def abs_sq(value: ArrayLike) -> Array:
    r"""The squared magnitude ``|value|²``, real also where `value` is complex.

    .. math:: \min(|x|^2, \text{the largest finite number})

    No compiler can merge the multiplication with an addition that follows, so the bits are the same on any layout of
    devices.

    Args:
        value: an array of any shape, real or complex.

    Returns:
        Its square, in the real dtype of `value`.

    Example:
        >>> from jaxopt_adam import abs_sq
        >>> print(abs_sq(3.0 + 4.0j))
        25.0
    """
    value = jnp.asarray(value)
    if jnp.iscomplexobj(value):
        return abs_sq(value.real) + abs_sq(value.imag)
    return jnp.minimum(jnp.square(value), jnp.finfo(value.dtype).max)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def norm(value: ArrayLike, bounded: bool = False) -> Array:
    """The root of the sum of |value|², real; it neither overflows nor underflows where a square would.

    At zero its derivative is zero. The norm of an empty array is 0, and that of an array with an infinite element is
    infinite.

    Args:
        value: an array of any shape, real or complex.
        bounded: whether to take the norm of ``squarable(value)``, which is then not kept in memory.
    """

    def careful(value: Array) -> Array:
        return _careful_norm(value, bounded)

    return quick_or_careful(_quick_norm, careful, jnp.asarray(value))


@norm.defjvp
def _(bounded: bool, primals: tuple[ArrayLike], tangents: tuple[Array]) -> tuple[Array, Array]:
    (value,) = map(jnp.asarray, primals)
    size = norm(value, bounded)
    direction = (squarable(value) if bounded else value) / jnp.where(size > 0, size, 1)
    return size, jnp.sum(jnp.real(jnp.conj(direction) * tangents[0]))


def _quick_norm(value: Array) -> tuple[Array, Array]:
    """The norm from the squares themselves; false where one is too large, or so small that it may have underflowed."""
    squares = jnp.sum(_plain_abs_sq(value))
    limits = jnp.finfo(squares.dtype)
    least = value.size * (float(limits.tiny) / float(limits.eps))
    return jnp.sqrt(squares), (squares >= least) & _are_squarable(squares)


def _careful_norm(value: Array, bounded: bool) -> Array:
    parts = [value.real, value.imag] if jnp.iscomplexobj(value) else [value]
    # Of both ends, since an array of sizes would have to be kept in memory.
    ends = [end for part in parts for end in (jnp.max(part, initial=0), -jnp.min(part, initial=0))]
    largest = functools.reduce(jnp.maximum, ends)
    if bounded:
        largest, value = squarable(largest), squarable(value)
    is_size = (largest > 0) & jnp.isfinite(largest)
    # A unit in which to measure. Its reciprocal must be a normal number, as compilers multiply by that.
    unit = jnp.where(is_size, jnp.minimum(largest, 2.0 ** (jnp.finfo(largest.dtype).maxexp - 3)), 1)
    return jnp.where(is_size, unit, largest) * jnp.sqrt(fused_sum(abs_sq(value / unit)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def mean_square(value: Array, axis: int | tuple[int, ...] | None = None, bounded: bool = False) -> Array:
    """The mean of |value|² over `axis`, real; it overflows no sooner than one of the squares, and is 0 if empty.

    With `bounded` it is the mean of ``|squarable(value)|²``; that array is then not kept in memory.
    """
    share = _share_of_one(value, axis)

    def quick(value: Array) -> tuple[Array, Array]:
        squares = jnp.sum(_plain_abs_sq(value), axis)
        return squares * share, jnp.all(_are_squarable(squares))

    def careful(value: Array) -> Array:
        return fused_sum(abs_sq(squarable(value) if bounded else value) * share, axis)

    return quick_or_careful(quick, careful, value)


@mean_square.defjvp
def _(axis: Any, bounded: bool, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (value,) = primals
    twice = 2 * (squarable(value) if bounded else value) * _share_of_one(value, axis)
    return mean_square(value, axis, bounded), jnp.sum(jnp.real(jnp.conj(twice) * tangents[0]), axis)


def _are_squarable(squares: Array) -> Array:
    """True for sums of squares of numbers that :func:`squarable` leaves as they are; false for NaN."""
    return squares <= most_squarable(squares.dtype) ** 2


@jax.custom_jvp
def bounded_product(value: Array, end: Array, start: Array) -> Array:
    """Re⟨squarable(value), end - start⟩ of like arrays; neither of the two is kept in memory."""

    def quick(given: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        value, end, start = given
        return _inner_product(value, end - start), _are_squarable(jnp.sum(_plain_abs_sq(value)))

    def careful(given: tuple[Array, Array, Array]) -> Array:
        value, end, start = given
        return fused_sum(jnp.real(jnp.conj(squarable(value)) * (end - start)))

    return quick_or_careful(quick, careful, (value, end, start))


@bounded_product.defjvp
def _(primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    value, end, start = primals
    of_value = _inner_product(tangents[0], end - start)
    return bounded_product(*primals), of_value + _inner_product(squarable(value), tangents[1] - tangents[2])


def _inner_product(one: Array, other: Array) -> Array:
    # Not as a dot product, for which arrays that are sharded would be gathered, and accelerators round to fewer digits.
    return jnp.sum(jnp.real(jnp.conj(one) * other))


def _share_of_one(value: Array, axis: int | tuple[int, ...] | None) -> float:
    """The weight of an element in a mean over `axis`."""
    axes = range(value.ndim) if axis is None else np.atleast_1d(axis)
    return 1 / max(math.prod(value.shape[each] for each in axes), 1)


def _plain_abs_sq(value: Array) -> Array:
    """|value|², infinite where it overflows."""
    if jnp.iscomplexobj(value):
        return jnp.square(value.real) + jnp.square(value.imag)
    return jnp.square(value)


# A decay below this has decay**1 == 0 next to one, in float64 too; it stands in for zero, which has no logarithm.
_SMALLEST = 1e-30
# The 12 leading bits of float32 numbers: a product of two such is exact, so a fused multiply-add changes nothing.
_HEAD = np.int32(-4096)


def _inexact(dtype: jnp.dtype) -> jnp.dtype:
    return dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.result_type(float)


@jax.custom_jvp
def _bias_correction_of_array(decay: Array, step: ArrayLike) -> Array:
    decay = jnp.maximum(decay, _SMALLEST)
    if decay.dtype == jnp.float64:
        return -jnp.expm1(step * jnp.log(decay))
    return _one_minus_power(*_log_in_two_parts(decay), step)


@_bias_correction_of_array.defjvp
def _bias_correction_of_array_jvp(primals: tuple[Array, ArrayLike], tangents: tuple[Array, object]):
    decay, step = primals
    count = jnp.asarray(step).astype(decay.dtype)
    return _bias_correction_of_array(decay, step), -count * decay ** (count - 1) * tangents[0]


def _head(value: Array) -> Array:
    bits = jax.lax.bitcast_convert_type(value, jnp.int32)
    return jax.lax.bitcast_convert_type(bits & _HEAD, jnp.float32)


def _log_in_two_parts(value: Array) -> tuple[Array, Array]:
    """log(value) for float32 0 < value < 1: its head and the rest, with about 30 good bits from one half upwards."""
    # Below one half the plain logarithm is good enough: 1 - value**step has no cancellation left to amplify its error.
    near = jnp.maximum(value, 0.5)
    bits = jax.lax.bitcast_convert_type(near, jnp.int32)
    even = jax.lax.bitcast_convert_type(bits & np.int32(-2), jnp.float32)
    numerator, denominator, last_bit = near - 1, 1 + even, near - even  # all three are exact
    quotient = numerator / denominator
    head, denominator_head = _head(quotient), _head(denominator)
    tail, denominator_tail = quotient - head, denominator - denominator_head
    remainder = numerator - head * denominator_head
    remainder = remainder - head * denominator_tail - tail * denominator_head
    remainder = remainder - tail * denominator_tail - quotient * last_bit
    square = quotient * quotient
    series = jnp.zeros_like(square)
    for power in range(21, 1, -2):
        series = square * (1 / power + series)
    rest = 2 * (tail + (remainder / denominator + quotient * series))
    far = jnp.log(value)
    far_head = _head(far)
    return jnp.where(value < 0.5, far_head, 2 * head), jnp.where(value < 0.5, far - far_head, rest)


def _one_minus_power(log_head: Array, log_rest: Array, step: ArrayLike) -> Array:
    """1 - exp(step · (log_head + log_rest)) in float32, within one ulp, for a `log_head` of 12 bits."""
    # The exponent as a sum of a high and a low part: the step comes in three parts whose products with the head are
    # exact, and what rounding drops from the sum of the products is kept.
    step = jnp.asarray(step).astype(jnp.int32)
    parts = [(step & np.int32(mask)).astype(jnp.float32) for mask in (0x7FC00000, 0x003FF800, 0x000007FF)]
    total, error = parts[0] * log_head, parts[0] * log_rest
    for part in parts[1:]:
        product = part * log_head
        larger = total + product
        error = error + ((total - larger) + product) + part * log_rest
        total = larger
    high = total + error
    low = (total - high) + error
    # 1 - exp(high + low), as 1 - 2**-n · exp(rest + low); XLA's own expm1 is off by up to five ulp.
    high, low = jnp.maximum(high, -20), jnp.where(high < -20, 0, low)  # exp(-20) is nothing next to one
    halvings = jnp.round(high * np.float32(-1 / np.log(2)))
    half = jax.lax.bitcast_convert_type((127 - halvings.astype(jnp.int32)) << 23, jnp.float32)
    rest = high + halvings * np.float32(0.693145751953125)  # exact: the head of log(2) has 15 bits
    low = low + halvings * np.float32(1.428606820309417e-06)
    series = jnp.zeros_like(rest)
    for factorial in range(9, 2, -1):
        series = (1 + series) * rest / factorial
    tail = rest * rest * (1 + series) / 2
    tail = tail + low * (1 + rest + tail)  # exp(rest + low) = 1 + rest + tail
    whole = 1 - half
    total = whole - half * rest
    return total + (((whole - total) - half * rest) - half * tail)
