"""Adafactor (Shazeer & Stern, 2018)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxopt_adam import _hyperparameters as kinds
from jaxopt_adam._averages import abs_sq, ema, mean_square, root
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._rule import Moment, leafwise
from jaxopt_adam._xla import fence
from jaxopt_adam.rules._blocks import factored_moments, mean_squares, over_factored_root


class AdafactorState(NamedTuple):
    """The state of :func:`adafactor`: trees like the parameters, with None for a leaf that has no such moment.

    Attributes:
        count: the number of updates done, int32.
        v_row: the average of the means of ``|g|² + ε`` over the largest axis: a tree, real, of shapes without that
            axis.
        v_col: the average of the means over the second largest axis, likewise; both are None for leaves that are not
            factored.
        v: the average of ``|g|² + ε``, a tree like the parameters, real; None for leaves that are factored.
        mu: the average of the steps, a tree like the parameters; None without momentum.
    """

    count: Array
    v_row: Any
    v_col: Any
    v: Any
    mu: Any = None


@optimizer
def adafactor(
    learning_rate: kinds.RelativeLearningRate = None,
    min_dim_size_to_factor: kinds.Size = 128,
    decay_rate: kinds.NonNegative = 0.8,
    decay_offset: kinds.NonNegative = 0,
    multiply_by_parameter_scale: kinds.Flag = True,
    clipping_threshold: kinds.OptionalNonNegative = 1.0,
    momentum: kinds.OptionalDecay = None,
    dtype_momentum: kinds.OptionalDtype = jnp.float32.dtype,
    weight_decay_rate: kinds.OptionalWeightDecay = None,
    eps: kinds.NonNegative = 1e-30,
    factored: kinds.Flag = True,
    weight_decay_mask: kinds.Mask = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adafactor: steps relative to the parameters' size, and only row and column means of a matrix's second moment.

    .. math::
        R_t &= \beta_t R_{t-1} + (1 - \beta_t) \langle |g_t|^2 + \varepsilon \rangle_j, & \beta_t &= 1 - t^{-c} \\
        C_t &= \beta_t C_{t-1} + (1 - \beta_t) \langle |g_t|^2 + \varepsilon \rangle_i, &
            h_t &= g_t / \sqrt{R_t C_t / \langle R_t \rangle} \\
        s_t &= \alpha \max(10^{-3}, \mathrm{RMS}\, \theta_{t-1}) \, h_t / \max(1, \mathrm{RMS}(h_t) / d), &
            u_t &= -(s_t + \lambda \theta_{t-1})

    where ⟨⟩ denotes means. With momentum the average of s takes the place of s. Leaves whose axes are too short have an
    average for each element, as in :func:`rmsprop`. A tensor is factored along its two largest axes, as in optax.
    PyTorch takes the last two. In flax's convolutions these are the same, in PyTorch's they are the kernel's height and
    width. As in optax α is 1 by default, and the step still goes downhill (the paper's α is
    :math:`\min(10^{-2}, 1 / \sqrt{t})`). The weight decay is not multiplied by α. The decays approach one, so a huge
    gradient is remembered for about as long as the run took before it.

    Choose it where memory is short: R and C take next to none. They are a coarse second moment, so :func:`adam` is the
    better choice where there is room for it.

    Args:
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these for parts of the parameters; None is 1.
        min_dim_size_to_factor: the least size, ≥ 1, of the two largest axes of a leaf for it to be factored.
        decay_rate: c ≥ 0, the exponent of the decay.
        decay_offset: the number of steps, ≥ 0, that is subtracted from t in the decay; the result is at least 1.
        multiply_by_parameter_scale: whether s is relative to the RMS of the leaf; else that factor is 1.
        clipping_threshold: d ≥ 0, the largest RMS of h; None for no clipping.
        momentum: the decay of the average of s, in [0, 1), not debiased; None for no momentum and no state for it.
        dtype_momentum: the storage dtype of `mu`, dithered if it has 16 bits; None for the dtype of the arithmetic,
            float32 or wider.
        weight_decay_rate: λ ≥ 0, a number, a schedule, or a tree of these; None for no decay.
        eps: ε ≥ 0, in units of the squared gradient.
        factored: whether to factor at all.
        weight_decay_mask: which leaves decay: a tree of booleans, a prefix of one, or a function to one; None for all.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`AdafactorState`. `update` needs `params` for
        `multiply_by_parameter_scale` and for weight decay.

    References:
        Shazeer & Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, 2018, algorithms 4 and 5.

    Example:
        >>> from jaxopt_adam import adafactor, minimize
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 1.0, adafactor(lambda t: 0.3 / (t + 1)), tol=1e-9).x.round(2))
        3.0
    """

    def scalars(step):
        # The share of the newest is what must keep its digits; the decay is near to one.
        share = 1 / jnp.asarray(jnp.maximum(step.count - decay_offset, 1), float) ** decay_rate
        scale = 1.0 if learning_rate is None else step.rate
        return {"scale": scale, "share": share, "eps": eps, "threshold": clipping_threshold}

    def direction(grad, moments, step):
        factored = moments.v is None
        update = over_factored_root(grad, moments.v_row, moments.v_col) if factored else grad / root(moments.v)
        # In memory, where it is read twice: for its mean square and for the update.
        update = fence(step.count, update)
        limit = 1
        if step.threshold is not None:
            limit = step.threshold / jnp.maximum(step.threshold, root(mean_square(update)))
        size = jnp.maximum(root(mean_square(step.param)), 1e-3) if multiply_by_parameter_scale else 1
        return step.scale * limit * size * update

    def first(grad, old, step):
        if old.v is None:
            rows, columns = mean_squares(step.grad)
            new = old._replace(
                v_row=ema(rows + step.eps, old.v_row, step.share), v_col=ema(columns + step.eps, old.v_col, step.share)
            )
        else:
            new = old._replace(v=ema(abs_sq(grad) + step.eps, old.v, step.share))
        return new if momentum is None else new._replace(mu=ema(old.mu, direction(grad, new, step), momentum))

    def second(grad, old, new, step):
        return -((direction(grad, new, step) if momentum is None else new.mu) + step.decay)

    return leafwise(
        AdafactorState,
        first,
        second,
        scalars,
        storage="float32",
        elementwise=False,
        learning_rate=learning_rate,
        weight_decay=0.0 if weight_decay_rate is None else weight_decay_rate,
        mask=weight_decay_mask,
        sees_to_decay=True,
        needs_params=multiply_by_parameter_scale,
        **factored_moments(min_dim_size_to_factor if factored else None),
        mu=None if momentum is None else Moment(dtype=dtype_momentum),
    )
