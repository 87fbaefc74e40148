"""SOAP (Vyas et al., 2024)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxopt_adam import _hyperparameters as kinds
from jaxopt_adam._averages import Denominator, abs_sq, bias_correction, ema, finite_quotient, norm, squarable
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._rule import Moment, leafwise
from jaxopt_adam.rules._matrices import bounded, by_eigenvalue, gram, refreshed, rotate

_NOISE = 8
"""The size below which a rotated element counts as noise, in units of rounding of the gradient's norm."""

_MOST = 4
"""The largest root mean square of an update, in multiples of Adam's largest element."""


class SoapState(NamedTuple):
    """The state of :func:`soap`.

    Attributes:
        count: the number of updates done, int32.
        mu: the average of g, a tree like the parameters.
        nu: the average of the squares of g in the bases, likewise.
        factors: L and R: for each axis a tree of n × n matrices, None for long axes and for leaves without factors.
        bases: their eigenvectors, as columns, likewise.
    """

    count: Array
    mu: Any
    nu: Any
    factors: Any
    bases: Any


@optimizer
def soap(
    learning_rate: kinds.LearningRate = 3e-3,
    b1: kinds.Decay = 0.95,
    b2: kinds.Decay = 0.95,
    eps: kinds.NonNegative = 1e-8,
    weight_decay: kinds.WeightDecay = 0.01,
    mask: kinds.Mask = None,
    *,
    shampoo_decay: kinds.OptionalDecay = None,
    precondition_frequency: kinds.Size = 10,
    max_precond_dim: kinds.Size = 10000,
    sort_by_eigenvalue: kinds.Flag = False,
) -> optax.GradientTransformationExtraArgs:
    r"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, & v_t &= \beta_2 v_{t-1} + (1 - \beta_2) (Q_L^T g_t Q_R)^2 \\
        u_t &= -\alpha \left(Q_L \frac{Q_L^T \hat m_t Q_R}{\sqrt{\hat v_t} + \varepsilon} Q_R^T
               + \lambda \theta_{t-1}\right) \\
        L_t &= \beta L_{t-1} + (1 - \beta) g_t g_t^T, & R_t &= \beta R_{t-1} + (1 - \beta) g_t^T g_t

    and every `precondition_frequency` steps :math:`Q_L \leftarrow \operatorname{QR}(L_t Q_L)`, likewise for R. Tensors
    have a factor and a basis for each axis; vectors have none. Choose it where fewer steps make up for the memory of
    the matrices and the time of their products.

    As in the authors' code the first gradient only makes the factors and their eigenvectors. In these bases it is
    diagonal, and Adam would blow up the rounding errors off the diagonal. The first update is therefore zero except for
    the weight decay, and Adam counts its steps from the second. As in the paper, `nu` stays as it is when the bases
    move. The authors' code first sorts the vectors, and `nu` with them, by their eigenvalues. Paper and code therefore
    differ from the first refresh at which that order has changed; ``sort_by_eigenvalue=True`` follows the code.

    Three guards are not in the paper. They keep tensors with bases safe where it divides one rounding error by another:

    - *Noise.* A gradient without full rank (few examples, dead units, tied rows) has directions in which the rotation
      leaves nothing but rounding errors. Each element of Adam's direction is therefore multiplied by
      :math:`v / (v + f^2)`, where :math:`f^2` is :math:`\sum v`, the average of :math:`\|g\|^2`, times the square of
      eight units of rounding. An element of relative size 1e-4 loses 1e-4 of itself in float32, and 1e-22 in float64.
    - *Update clipping*, as in Adafactor. While the bases stay, by the Cauchy–Schwarz inequality, no element is larger
      than :math:`C = \sqrt{(1 - \beta_1) (1 - \beta_2^t) / ((1 - \beta_2) (1 - \beta_1^t))}` for :math:`\beta_1 \le
      \beta_2`, which is 1 for equal decays. When the bases move, old momentum can meet the second moment of other
      directions. A direction whose root mean square is above :math:`4 C` is therefore scaled down to it. So without
      decay no update is longer than :math:`4 C \alpha \sqrt n` for n elements. For :math:`\beta_1 > \beta_2` Adam has
      no such bound, and the update is not clipped.
    - *Overflow.* A finite gradient whose squared norm is above a quarter of the largest number is scaled down to it.

    Args:
        learning_rate: α ≥ 0, a number, a schedule, or a tree of these. None gives the direction alone, unscaled and
            with the sign of the gradient.
        b1: β₁ in [0, 1), the decay of the average of the gradients.
        b2: β₂ in [0, 1), the decay of the average of their squares.
        eps: ε ≥ 0, in units of the gradient.
        weight_decay: λ ≥ 0, a number, a schedule, or a tree of these; decoupled, so times α.
        mask: which leaves decay: a tree of booleans, a prefix, or a function from the parameters to one; None for all.
        shampoo_decay: β in [0, 1), the decay of L and R; None for `b2`.
        precondition_frequency: the number of steps for which a basis is kept, a whole number ≥ 1.
        max_precond_dim: the longest axis that has a factor and a basis, a whole number ≥ 1.
        sort_by_eigenvalue: whether the vectors of a basis, and `nu` with them, are put in the order of their
            eigenvalues, the largest first, before each refresh.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`SoapState`. Its `update` needs `params` if there is a weight
        decay.

    References:
        Vyas et al., SOAP: Improving and Stabilizing Shampoo using Adam, 2024, algorithm 3.

    Example:
        >>> from jaxopt_adam import soap, minimize
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, soap(0.1, weight_decay=0.0), tol=1e-9).x.round(2))
        3.0
    """
    factor_decay = b2 if shampoo_decay is None else shampoo_decay

    def shapes(_, shape):
        sides = [(size, size) if size <= max_precond_dim else None for size in shape]
        return sides if len(shape) > 1 and 0 not in shape and any(sides) else None

    def axes(path, shape):
        sides = shapes(path, shape)
        return sides and [None if side is None else (axis, None) for axis, side in enumerate(sides)]

    def scalars(step):
        # Leaves with bases start one step later. In the first step their update is zero, whatever its bias correction.
        corrections = [
            [bias_correction(decay, count) for decay in (b1, b2)]
            for count in (step.count, jnp.maximum(step.count - 1, 1))
        ]
        c1, c2 = corrections[1]
        largest = jnp.sqrt((1 - b1) * c2 / ((1 - b2) * c1))
        return {
            "corrections": corrections,
            "limit": jnp.where(jnp.less_equal(b1, b2), _MOST * largest, jnp.inf),
            "age": jnp.where(step.count == 1, 0, 2 - ((step.count - 1) % precondition_frequency == 0)),
            "denominator": Denominator(eps),
        }

    def adam(mu, nu, corrections, step):
        c1, c2 = corrections
        return mu / c1 / step.denominator(finite_quotient(nu, c2))

    def average_of_squares(grad, old):
        return ema(old.nu, abs_sq(rotate(grad, old.bases)), b2)

    def first(grad, old, step):
        if old.bases is None:
            grad = squarable(grad)
            return old._replace(mu=ema(old.mu, grad, b1), nu=ema(old.nu, abs_sq(grad), b2))
        grad = bounded(grad)
        mu, nu = (
            jnp.where(step.age == 0, before, after)
            for before, after in ((old.mu, ema(old.mu, grad, b1)), (old.nu, average_of_squares(grad, old)))
        )
        factors = [f if f is None else ema(f, gram(grad, axis), factor_decay) for axis, f in enumerate(old.factors)]
        bases = old.bases
        if sort_by_eigenvalue:
            bases, nu = by_eigenvalue(step.age == 1, factors, bases, nu)
        bases = jax.tree.map(functools.partial(refreshed, step.age), factors, bases)
        return old._replace(mu=mu, nu=nu, factors=factors, bases=bases)

    def second(grad, old, new, step):
        if old.bases is None:
            return -step.rate * adam(new.mu, new.nu, step.corrections[0], step)
        # The update is along the old bases, whose order `new.nu` may have left.
        nu = average_of_squares(bounded(grad), old) if sort_by_eigenvalue else new.nu
        direction = adam(_beyond_noise(nu) * rotate(new.mu, old.bases), nu, step.corrections[1], step)
        change = rotate(-step.rate * _clipped(direction, step.limit), old.bases, back=True)
        return jnp.where(step.age == 0, 0.0, change)

    return leafwise(
        SoapState,
        first,
        second,
        scalars,
        storage="float32",
        elementwise=False,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        real_leaves=True,
        mu=Moment(),
        nu=Moment(),
        factors=Moment(shape=shapes, axes=axes),
        bases=Moment(shape=shapes, axes=axes),
    )


def _beyond_noise(nu: Array) -> Array:
    """The share of each squared element that is not the rounding error of the rotation, from 0 to 1."""
    share = nu / (jnp.sum(nu) + jnp.finfo(nu.dtype).tiny)
    return share / (share + (_NOISE * jnp.finfo(nu.dtype).eps) ** 2)


def _clipped(direction: Array, limit: Array) -> Array:
    """A direction whose root mean square is at most `limit`."""
    return direction / jnp.maximum(1, norm(direction) / (limit * direction.size**0.5))
