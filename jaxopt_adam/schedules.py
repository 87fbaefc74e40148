"""Schedules as data: functions of `count` that are pytrees of their numbers.

This module has all schedules of :mod:`optax.schedules`, with the same names, arguments and defaults, and some that
optax lacks. A schedule is called with `count`, the number of updates done, and can be used wherever optax takes one. It
is also a pytree: values, numbers of steps and boundaries are its leaves. An optimizer with a schedule can therefore be
an argument of a jitted function. A new peak or a new length then needs no new trace, and a grid can be over any of
these numbers.

Values stay accurate where optax's formulas lose digits. For example, optax computes the remaining fraction of the steps
as one minus the fraction that is done. At the last of a million steps, this is wrong in the third digit.

A plain function of `count` works as well, but is part of the structure of an optimizer.

All numbers are floating-point numbers, even numbers of steps. Everything therefore has a derivative. Counts and
boundaries are exact up to 2²⁴ = 16,777,216 steps.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, ParamSpec

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxopt_adam._data import Data, factory_of, register, result_of, rule_of
from jaxopt_adam._hyperparameters import (
    Boundaries,
    Flag,
    OptionalReal,
    PositiveSteps,
    Real,
    Schedule,
    Steps,
    at_least_float32,
    choice,
    real,
)
from jaxopt_adam._layout import Layout
from jaxopt_adam._shown import shown

P = ParamSpec("P")


class DataSchedule(Data):
    """A schedule that is also a pytree of its numbers.

    The functions of this module make such schedules. :func:`schedule` makes such functions.

    Example:
        >>> import jax
        >>> from jaxopt_adam.schedules import linear_schedule
        >>> warmup = linear_schedule(0.0, 1.0, transition_steps=4)
        >>> print(warmup(1))
        0.25
        >>> warmup.replace(transition_steps=10)
        linear_schedule(init_value=0.0, end_value=1.0, transition_steps=10.0)
        >>> print(jax.grad(lambda each: each(1))(warmup).hyperparameters["end_value"])
        0.25
    """

    _kind = "a schedule"
    is_schedule = True

    def __call__(self, count: ArrayLike) -> Array:
        """The value after `count` updates.

        Args:
            count: the number of updates done, from 0; a whole number or an array of them.

        Returns:
            The value, in float32 at least, of the shape of `count`.
        """
        numbers = map(at_least_float32, self._leaves)
        arguments = Layout(*self._structure[1:]).arguments(numbers)
        return jnp.asarray(result_of(rule_of(self._factory), arguments)(count))


register(DataSchedule)


def schedule(rule: Callable[P, Schedule]) -> Callable[P, DataSchedule]:
    """Make a factory of :class:`DataSchedule` from a function of numbers.

    The function takes the numbers and returns a function of `count`. It is called again whenever the schedule is
    called, with tracers where the schedule is traced. Its Python control flow must therefore not depend on the value of
    a number.

    Args:
        rule: the function; every argument has a name (no ``*args``).

    Returns:
        The factory, with the name, the signature and the documentation of `rule`.

    Raises:
        TypeError: if an argument of `rule` cannot be given by name.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_adam.schedules import schedule
        >>> @schedule
        ... def halving(init_value, steps):
        ...     return lambda count: init_value * 0.5 ** jnp.floor(count / steps)
        >>> print(halving(1.0, steps=10)(25))
        0.25
        >>> halving(1.0, steps=10)
        halving(init_value=1.0, steps=10)
    """
    return factory_of(rule, DataSchedule)


@schedule
def constant_schedule(value: Real) -> Schedule:
    """A value that does not change.

    Args:
        value: the value.

    Returns:
        The schedule.

    Raises:
        TypeError: if `value` is not a real number.

    Example:
        >>> from jaxopt_adam.schedules import constant_schedule
        >>> print(constant_schedule(0.5)(100))
        0.5
    """
    return lambda count: jnp.broadcast_to(value, jnp.shape(count)) if jnp.ndim(count) else value


@schedule
def polynomial_schedule(
    init_value: Real, end_value: Real, power: Real, transition_steps: Steps, transition_begin: Steps = 0
) -> Schedule:
    r"""From one value to another along a power.

    .. math:: (I - E) \left(1 - \frac{t - B}{T}\right)^p + E \quad \text{for } B \le t \le B + T

    with :math:`I` before :math:`B` and :math:`E` after :math:`B + T`.

    Args:
        init_value: I, the first value.
        end_value: E, the last value.
        power: p, the power.
        transition_steps: T, the number of steps from I to E. Where it is 0 or less the value stays I.
        transition_begin: B, the number of steps before the value starts to change; where negative, 0.

    Returns:
        The schedule.

    Raises:
        TypeError: if an argument is not a real number.

    Example:
        >>> from jaxopt_adam.schedules import polynomial_schedule
        >>> print(polynomial_schedule(1.0, 0.0, power=2, transition_steps=4)(2))
        0.25
    """

    def value(count: ArrayLike) -> Array:
        is_long, _, left = _progress(count, transition_steps, transition_begin)
        share = _power(left, power)
        return jnp.where(is_long, init_value * share + end_value * (1 - share), init_value)

    return value


@schedule
def linear_schedule(
    init_value: Real, end_value: Real, transition_steps: Steps, transition_begin: Steps = 0
) -> Schedule:
    r"""From one value to another along a line.

    .. math:: I + \frac{t - B}{T} (E - I) \quad \text{for } B \le t \le B + T

    with :math:`I` before :math:`B` and :math:`E` after :math:`B + T`.

    Args:
        init_value: I, the first value.
        end_value: E, the last value.
        transition_steps: T, the number of steps from I to E. Where it is 0 or less the value stays I.
        transition_begin: B, the number of steps before the value starts to change; where negative, 0.

    Returns:
        The schedule.

    Raises:
        TypeError: if an argument is not a real number.

    Example:
        >>> from jaxopt_adam.schedules import linear_schedule
        >>> print(linear_schedule(1.0, 0.5, transition_steps=100)(50))
        0.75
    """

    def value(count: ArrayLike) -> Array:
        is_long, done, left = _progress(count, transition_steps, transition_begin)
        return jnp.where(is_long, init_value * left + end_value * done, init_value)

    return value


@schedule
def exponential_decay(
    init_value: Real,
    transition_steps: Steps,
    decay_rate: Real,
    transition_begin: Steps = 0,
    staircase: Flag = False,
    end_value: OptionalReal = None,
) -> Schedule:
    r"""Exponential decay, continuous or in stairs.

    .. math:: I \, r^{(t - B) / T} \quad \text{for } t > B

    with :math:`I` up to :math:`B`.

    Args:
        init_value: I, the first value.
        transition_steps: T, the number of steps in which the value is multiplied by r. Where it is 0 or less the value
            stays I.
        decay_rate: r, the rate. Where it is 0 the value stays I.
        transition_begin: B, the number of steps before the value starts to change.
        staircase: whether the exponent is rounded down to a whole number.
        end_value: the bound of the value, a lower one where r < 1 and an upper one elsewhere; None for none.

    Returns:
        The schedule.

    Raises:
        TypeError: if an argument is not a real number, or `staircase` not a bool.

    Example:
        >>> from jaxopt_adam.schedules import exponential_decay
        >>> print(exponential_decay(1.0, transition_steps=10, decay_rate=0.5)(20))
        0.25
    """

    def value(count: ArrayLike) -> Array:
        is_decaying = (jnp.asarray(transition_steps) > 0) & (jnp.asarray(decay_rate) != 0)
        done = count - jnp.maximum(transition_begin, 0)
        exponent = done / jnp.where(is_decaying, transition_steps, 1)
        exponent = jnp.floor(exponent) if staircase else exponent
        rate = jnp.where(is_decaying, decay_rate, 1)
        now = jnp.where(done <= 0, init_value, init_value * jnp.power(rate, exponent))
        if end_value is not None:
            now = jnp.where(rate < 1, jnp.maximum(now, end_value), jnp.minimum(now, end_value))
        return jnp.where(is_decaying, now, init_value)

    return value


@schedule
def cosine_decay_schedule(
    init_value: Real, decay_steps: PositiveSteps, alpha: Real = 0.0, exponent: Real = 1.0
) -> Schedule:
    r"""Decay along half a cosine.

    .. math:: I \left((1 - \alpha) \left[\frac{1 + \cos(\pi t / T)}{2}\right]^p + \alpha\right)
        \quad \text{for } t \le T

    with :math:`\alpha I` after :math:`T`.

    Args:
        init_value: I, the first value.
        decay_steps: T > 0, the number of steps of the decay.
        alpha: α, the last value relative to the first.
        exponent: p, the exponent of the cosine.

    Returns:
        The schedule.

    Raises:
        TypeError: if an argument is not a real number.
        ValueError: if `decay_steps` is not above 0; where it is traced the value is NaN.

    References:
        Loshchilov & Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2017.

    Example:
        >>> from jaxopt_adam.schedules import cosine_decay_schedule
        >>> print(cosine_decay_schedule(1.0, decay_steps=100)(50).round(6))
        0.5
    """

    def value(count: ArrayLike) -> Array:
        is_long, _, left = _progress(count, decay_steps)
        share = _power(_half_cosine(left), exponent)
        return jnp.where(is_long, init_value * ((1 - alpha) * share + alpha), jnp.nan)

    return value


@schedule
def piecewise_constant_schedule(init_value: Real, boundaries_and_scales: Boundaries = None) -> Schedule:
    """A value that is multiplied by a scale at each boundary.

    Args:
        init_value: the first value.
        boundaries_and_scales: a dictionary from boundaries to scales, or pairs of the two. A boundary is the number of
            steps after which its scale applies. Scales are at least 0. Boundaries and scales are leaves.

    Returns:
        The schedule.

    Raises:
        TypeError: if an argument is not of these kinds.
        ValueError: if a scale is negative.

    Example:
        >>> from jaxopt_adam.schedules import piecewise_constant_schedule
        >>> print(piecewise_constant_schedule(1.0, {100: 0.5, 200: 0.5})(150))
        0.5
    """

    def value(count: ArrayLike) -> Array:
        now = jnp.asarray(init_value, jnp.result_type(float))
        for boundary, scale in boundaries_and_scales or ():  # pyright: ignore[reportGeneralTypeIssues]
            now = jnp.where(jnp.asarray(count) < boundary, now, scale * now)
        return jnp.broadcast_to(now, jnp.broadcast_shapes(now.shape, jnp.shape(count)))

    return value


@schedule
def piecewise_interpolate_schedule(
    interpolate_type: Annotated[str, choice("linear", "cosine")],
    init_value: Real,
    boundaries_and_scales: Boundaries = None,
) -> Schedule:
    """A value that is multiplied by a scale at each boundary, and interpolated between them.

    Args:
        interpolate_type: the interpolation between two boundaries, "linear" or "cosine".
        init_value: the first value.
        boundaries_and_scales: a dictionary from boundaries to scales, or pairs of the two. A boundary is the number of
            steps at which its scale is reached. Scales are at least 0. Boundaries and scales are leaves. The boundaries
            are sorted when the schedule is made.

    Returns:
        The schedule.

    Raises:
        TypeError: if an argument is not of these kinds.
        ValueError: if `interpolate_type` is another word, or a scale is negative.

    Example:
        >>> from jaxopt_adam.schedules import piecewise_interpolate_schedule
        >>> print(piecewise_interpolate_schedule("linear", 1.0, {100: 0.5})(50))
        0.75
    """

    def value(count: ArrayLike) -> Array:
        last = jnp.asarray(init_value, jnp.result_type(float))
        begin, now = 0, last
        for boundary, scale in boundaries_and_scales or ():  # pyright: ignore[reportGeneralTypeIssues]
            then = last * scale
            _, *shares = _progress(count, jnp.maximum(boundary - begin, 1), begin)
            done, left = shares if interpolate_type == "linear" else map(_half_cosine, shares)
            now = jnp.where(jnp.asarray(count) < begin, now, last * left + then * done)
            now = jnp.where(jnp.asarray(count) < boundary, now, then)
            begin, last = boundary, then
        return jnp.broadcast_to(now, jnp.broadcast_shapes(now.shape, jnp.shape(count)))

    return value


@schedule
def linear_onecycle_schedule(
    transition_steps: PositiveSteps,
    peak_value: Real,
    pct_start: Real = 0.3,
    pct_final: Real = 0.85,
    div_factor: Real = 25.0,
    final_div_factor: Real = 1e4,
) -> Schedule:
    r"""One cycle of three lines: up to the peak, back down, and further down.

    The value goes from :math:`P / d` to :math:`P` in the first :math:`p T` steps, back to :math:`P / d` at step
    :math:`q T`, and to :math:`P / (d f)` at step :math:`T`. The boundaries are rounded down to whole numbers.

    Args:
        transition_steps: T > 0, the number of steps of the cycle.
        peak_value: P, the peak.
        pct_start: p, the share of the steps that go up.
        pct_final: q, the share of the steps after which the value is P / d again.
        div_factor: d, the peak relative to the first value.
        final_div_factor: f, the first value relative to the last.

    Returns:
        The schedule.

    Raises:
        TypeError: if an argument is not a real number.
        ValueError: if `transition_steps` is not above 0.

    References:
        Smith & Topin, Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates, 2017.

    Example:
        >>> from jaxopt_adam.schedules import linear_onecycle_schedule
        >>> print(linear_onecycle_schedule(100, peak_value=1.0)(30).round(6))
        1.0
    """
    boundaries = (
        (_whole_share(pct_start, transition_steps), div_factor),
        (_whole_share(pct_final, transition_steps), 1.0 / div_factor),
        (transition_steps, 1.0 / final_div_factor),
    )
    return rule_of(piecewise_interpolate_schedule)("linear", peak_value / div_factor, boundaries)


@schedule
def cosine_onecycle_schedule(
    transition_steps: PositiveSteps,
    peak_value: Real,
    pct_start: Real = 0.3,
    div_factor: Real = 25.0,
    final_div_factor: Real = 1e4,
) -> Schedule:
    r"""One cycle of two halves of a cosine: up to the peak and down.

    The value goes from :math:`P / d` at step 0 to the peak :math:`P` at step :math:`p T`, rounded down to a whole
    number. From there it falls to :math:`P / (d f)` at step :math:`T`, and stays there, as in optax. PyTorch's
    `OneCycleLR` has its peak at step :math:`p T - 1`, not rounded, and its last value at step :math:`T - 1`; the page
    "From PyTorch" has a schedule that is equal to it.

    Args:
        transition_steps: T > 0, the number of steps of the cycle.
        peak_value: P, the peak.
        pct_start: p, the share of the steps that go up.
        div_factor: d, the peak relative to the first value.
        final_div_factor: f, the first value relative to the last.

    Returns:
        The schedule.

    Raises:
        TypeError: if an argument is not a real number.
        ValueError: if `transition_steps` is not above 0.

    References:
        Smith & Topin, Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates, 2017.

    Example:
        >>> from jaxopt_adam.schedules import cosine_onecycle_schedule
        >>> print(cosine_onecycle_schedule(100, peak_value=1.0)(30).round(6))
        1.0
    """
    boundaries = (
        (_whole_share(pct_start, transition_steps), div_factor),
        (transition_steps, 1.0 / (div_factor * final_div_factor)),
    )
    return rule_of(piecewise_interpolate_schedule)("cosine", peak_value / div_factor, boundaries)


@schedule
def warmup_constant_schedule(init_value: Real, peak_value: Real, warmup_steps: Steps) -> Schedule:
    """Linear warm-up to a value that then stays.

    Args:
        init_value: the first value.
        peak_value: the value after the warm-up.
        warmup_steps: the number of steps of the warm-up. Where it is 0 or less the value stays `init_value`, as in
            optax.

    Returns:
        The schedule.

    Raises:
        TypeError: if an argument is not a real number.

    Example:
        >>> from jaxopt_adam.schedules import warmup_constant_schedule
        >>> print(warmup_constant_schedule(0.0, 1.0, warmup_steps=10)(5))
        0.5
    """
    return rule_of(linear_schedule)(init_value, peak_value, warmup_steps)


@schedule
def warmup_cosine_decay_schedule(
    init_value: Real,
    peak_value: Real,
    warmup_steps: Steps,
    decay_steps: PositiveSteps,
    end_value: Real = 0.0,
    exponent: Real = 1.0,
) -> Schedule:
    """Linear warm-up, then decay along half a cosine.

    Args:
        init_value: the first value.
        peak_value: the value after the warm-up.
        warmup_steps: the number of steps of the warm-up.
        decay_steps: the total number of steps, including the warm-up.
        end_value: the last value.
        exponent: the exponent of the cosine, as in :func:`cosine_decay_schedule`.

    Returns:
        The schedule.

    Raises:
        TypeError: if an argument is not a real number.
        ValueError: if `decay_steps` is not above 0. Where it is not above `warmup_steps` the value after the warm-up is
            NaN.

    Example:
        >>> from jaxopt_adam.schedules import warmup_cosine_decay_schedule
        >>> learning_rate = warmup_cosine_decay_schedule(0.0, 1.0, warmup_steps=10, decay_steps=110)
        >>> print(learning_rate(5), learning_rate(60).round(6))
        0.5 0.5
    """
    alpha = jnp.where(
        jnp.asarray(peak_value) == 0, 0, end_value / jnp.where(jnp.asarray(peak_value) == 0, 1, peak_value)
    )
    cosine = rule_of(cosine_decay_schedule)(peak_value, decay_steps - warmup_steps, alpha, exponent)
    return _joined([rule_of(linear_schedule)(init_value, peak_value, warmup_steps), cosine], [warmup_steps])


@schedule
def warmup_exponential_decay_schedule(
    init_value: Real,
    peak_value: Real,
    warmup_steps: Steps,
    transition_steps: Steps,
    decay_rate: Real,
    transition_begin: Steps = 0,
    staircase: Flag = False,
    end_value: OptionalReal = None,
) -> Schedule:
    """Linear warm-up, then exponential decay.

    Args:
        init_value: the first value.
        peak_value: the value after the warm-up.
        warmup_steps: the number of steps of the warm-up.
        transition_steps: as in :func:`exponential_decay`. The arguments that follow are also as there.
        decay_rate: the rate.
        transition_begin: the number of steps between the warm-up and the decay.
        staircase: whether the exponent is rounded down to a whole number.
        end_value: the bound of the value, or None for none.

    Returns:
        The schedule.

    Raises:
        TypeError: if an argument is not a real number, or `staircase` not a bool.

    Example:
        >>> from jaxopt_adam.schedules import warmup_exponential_decay_schedule
        >>> print(warmup_exponential_decay_schedule(0.0, 1.0, 10, transition_steps=10, decay_rate=0.5)(20))
        0.5
    """
    decay = rule_of(exponential_decay)(peak_value, transition_steps, decay_rate, transition_begin, staircase, end_value)
    return _joined([rule_of(linear_schedule)(init_value, peak_value, warmup_steps), decay], [warmup_steps])


@schedule
def warmup_stable_decay_schedule(
    init_value: Real,
    peak_value: Real,
    warmup_steps: Steps,
    stable_steps: Steps,
    decay_steps: PositiveSteps,
    end_value: Real = 0.0,
    decay_type: Annotated[str, choice("linear", "1-sqrt")] = "linear",
) -> Schedule:
    r"""Linear warm-up, a stable phase, and a decay at the end.

    .. math:: E + (P - E) (1 - s) \quad \text{or} \quad E + (P - E) (1 - \sqrt{s})

    during the decay. Here s is the fraction of the decay that is done. A training run with this schedule can be
    extended, because the stable phase does not depend on the number of steps that follow.

    Args:
        init_value: the first value.
        peak_value: P, the value of the stable phase.
        warmup_steps: the number of steps of the warm-up.
        stable_steps: the number of steps of the stable phase.
        decay_steps: the number of steps of the decay, above 0.
        end_value: E, the last value.
        decay_type: the form of the decay, "linear" or "1-sqrt".

    Returns:
        The schedule.

    Raises:
        TypeError: if an argument is not a real number.
        ValueError: if `decay_steps` is not above 0, or `decay_type` is another word.

    References:
        Hu et al., MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training Strategies, 2024;
        Hägele et al., Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations, 2024, for 1 − √s.

    Example:
        >>> from jaxopt_adam.schedules import warmup_stable_decay_schedule
        >>> learning_rate = warmup_stable_decay_schedule(0.0, 1.0, warmup_steps=10, stable_steps=70, decay_steps=20)
        >>> print(learning_rate(5), learning_rate(50), learning_rate(90))
        0.5 1.0 0.5
    """

    def decay(count: ArrayLike) -> Array:
        _, done, left = _progress(count, decay_steps)
        if decay_type == "1-sqrt":
            done = _power(done, 0.5)
            left = 1 - done
        return jnp.asarray(peak_value * left + end_value * done)

    warmup = rule_of(linear_schedule)(init_value, peak_value, warmup_steps)
    return _joined([warmup, lambda count: peak_value, decay], [warmup_steps, warmup_steps + stable_steps])


@schedule
def warmup_inverse_sqrt_schedule(init_value: Real, peak_value: Real, warmup_steps: Steps) -> Schedule:
    r"""Linear warm-up, then decay with the inverse root of the number of steps.

    .. math:: P \sqrt{W / t} \quad \text{for } t \ge W

    Args:
        init_value: the first value.
        peak_value: P, the value after the warm-up.
        warmup_steps: W, the number of steps of the warm-up. Below 1 there is no warm-up, and W counts as 1.

    Returns:
        The schedule.

    Raises:
        TypeError: if an argument is not a real number.

    References:
        Vaswani et al., Attention Is All You Need, 2017, section 5.3.

    Example:
        >>> from jaxopt_adam.schedules import warmup_inverse_sqrt_schedule
        >>> print(warmup_inverse_sqrt_schedule(0.0, 1.0, warmup_steps=100)(400))
        0.5
    """

    def decay(count: ArrayLike) -> Array:
        scale = jnp.maximum(warmup_steps, 1)
        return jnp.asarray(peak_value * jnp.sqrt(scale / jnp.maximum(count + warmup_steps, scale)))

    return _joined([rule_of(linear_schedule)(init_value, peak_value, warmup_steps), decay], [warmup_steps])


def _cycles(name: str, value: Any) -> Any:
    """A check for the arguments of several schedules."""
    if not isinstance(value, Iterable) or isinstance(value, (str, Mapping)):
        raise TypeError(f"{name} must be a list of dictionaries, got {shown(value)}")
    cycles = tuple(value)
    if not cycles:
        raise ValueError(f"{name} must have at least one dictionary")
    for index, each in enumerate(cycles):
        if not isinstance(each, Mapping):
            raise TypeError(f"{name}[{index}] must be a dictionary, got {shown(each)}")
    try:
        return tuple(dict(warmup_cosine_decay_schedule(**each).hyperparameters) for each in cycles)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


@schedule
def sgdr_schedule(cosine_kwargs: Annotated[Iterable[Mapping[str, ArrayLike]], _cycles]) -> Schedule:
    """Warm restarts: several cycles of warm-up and cosine decay.

    Args:
        cosine_kwargs: for each cycle a dictionary of the arguments of :func:`warmup_cosine_decay_schedule`. Its
            `decay_steps` is the length of the cycle.

    Returns:
        The schedule.

    Raises:
        TypeError: if `cosine_kwargs` is not a list of dictionaries, or a dictionary lacks an argument or has an unknown
            one.
        ValueError: if the list is empty, or a value is out of range.

    References:
        Loshchilov & Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2017.

    Example:
        >>> from jaxopt_adam.schedules import sgdr_schedule
        >>> cycle = dict(init_value=0.0, peak_value=1.0, warmup_steps=10, decay_steps=100)
        >>> print(sgdr_schedule([cycle, cycle | {"peak_value": 0.5}])(110))
        0.5
    """
    cycles = list(cosine_kwargs)
    ends = list(itertools.accumulate(each["decay_steps"] for each in cycles))
    return _joined([rule_of(warmup_cosine_decay_schedule)(**each) for each in cycles], ends[:-1])


def _schedules(name: str, value: Any) -> Any:
    """A check for a list of schedules, among them plain functions."""
    if not isinstance(value, (list, tuple)) or not value:
        raise TypeError(f"{name} must be a list of schedules, got {shown(value)}")
    for index, each in enumerate(value):
        if not callable(each):
            raise TypeError(f"{name}[{index}] must be a schedule, got {shown(each)}")
    return tuple(value)


def _each_steps(name: str, value: Any) -> Any:
    """A check for a list of numbers of steps."""
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name} must be a list of numbers of steps, got {shown(value)}")
    return tuple(real(f"{name}[{index}]", each) for index, each in enumerate(value))


@schedule
def join_schedules(
    schedules: Annotated[Sequence[Schedule], _schedules], boundaries: Annotated[Sequence[ArrayLike], _each_steps]
) -> Schedule:
    """Several schedules one after the other, each counting from its own start.

    Args:
        schedules: the schedules, of this module or plain functions of `count`.
        boundaries: for each schedule except the first, the number of steps after which it starts.

    Returns:
        The schedule.

    Raises:
        TypeError: if `schedules` is not a list of functions, or `boundaries` is not a list of numbers.
        ValueError: if the number of boundaries is not one less than that of schedules; raised when the result is
            called.

    Example:
        >>> from jaxopt_adam.schedules import constant_schedule, join_schedules, linear_schedule
        >>> joined = join_schedules([constant_schedule(1.0), linear_schedule(1.0, 0.0, 10)], boundaries=[90])
        >>> print(joined(50), joined(95))
        1.0 0.5
    """
    if len(boundaries) != len(schedules) - 1:
        raise ValueError(
            f"join_schedules: {len(schedules)} schedules need {len(schedules) - 1} boundaries, got {len(boundaries)}"
        )
    return _joined(schedules, boundaries)


def _joined(schedules: Sequence[Schedule], boundaries: Sequence[ArrayLike]) -> Schedule:
    def value(count: ArrayLike) -> Array:
        now = schedules[0](count)
        for boundary, each in zip(boundaries, schedules[1:], strict=True):
            now = jnp.where(jnp.asarray(count) < boundary, now, each(jnp.subtract(count, boundary)))
        return jnp.asarray(now)

    return value


def _progress(count: ArrayLike, steps: ArrayLike, begin: ArrayLike = 0) -> tuple[Array, Array, Array]:
    """True if there are any steps; the share of them that is done, and the share that is left.

    Neither is computed from the other: near the end one minus the share that is done would have few digits left.
    """
    is_long = jnp.asarray(steps) > 0
    steps = jnp.where(is_long, steps, 1)
    done = jnp.clip(jnp.subtract(count, jnp.maximum(begin, 0)), 0, steps)
    return is_long, done / steps, (steps - done) / steps


def _half_cosine(share: Array) -> Array:
    """(1 − cos(π · share)) / 2, without its cancellation."""
    return jnp.square(jnp.sin((jnp.pi / 2) * share))


def _power(base: Array, exponent: ArrayLike) -> Array:
    """A power of a number ≥ 0, whose derivative at zero is zero."""
    is_zero = base == 0
    power = jnp.where(is_zero, 1, base) ** exponent
    return jnp.where(is_zero, 0.0 ** jax.lax.stop_gradient(jnp.asarray(exponent)), power)


def _whole_share(share: ArrayLike, steps: ArrayLike) -> Array:
    """A share of some steps, rounded down; a product that is a whole number but for rounding counts as that."""
    product = share * jnp.asarray(steps, jnp.result_type(float))
    return jnp.floor(product * (1 + 4 * jnp.finfo(product.dtype).eps))
