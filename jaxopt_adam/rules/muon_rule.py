"""The arithmetic of :func:`muon`: for matrices, and Adam's for all else."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxopt_adam._rule import Moment, leafwise
from jaxopt_adam.averages import (
    Denominator,
    abs_sq,
    bias_correction,
    debiasing_weights,
    ema,
    finite_product,
    finite_quotient,
    weighted,
)
from jaxopt_adam.matrices import as_matrices, orthogonalize
from jaxopt_adam.noted import note
from jaxopt_adam.trees import array_like, choose, inexact_dtype, leaves_like


class MuonState(NamedTuple):
    """The state of :func:`muon`.

    Attributes:
        count: the number of updates done, int32.
        mu: the average of g, a tree like the parameters.
        nu: the average of ``|g|²``, likewise, real; None for matrices.
    """

    count: Array
    mu: Any
    nu: Any


def muon_rule(
    learning_rates: tuple[Any, Any],
    weight_decays: tuple[Any, Any],
    mask: Any,
    axes_of: Any,
    *,
    coefficients: Any,
    beta: Any,
    eps: Any,
    mu_dtype: Any,
    nesterov: bool,
    adaptive: bool,
    preconditioning: str,
    consistent_rms: Any,
    b1: Any,
    b2: Any,
    eps_root: Any,
) -> optax.GradientTransformationExtraArgs:
    """Muon's rule for the leaves that `axes_of` finds matrices in, and AdamW's for the others.

    The learning rates and weight decays are those of both, in this order; the rest as for :func:`muon`.
    """

    def scalars(step):
        return {
            "weights": debiasing_weights(jnp.ones(()), beta, step.count, nesterov=nesterov),
            "adam_weights": debiasing_weights(-step.rate, b1, step.count, nesterov=nesterov),
            "c2": bias_correction(b2, step.count),
            "denominator": Denominator(eps, eps_root),
            "consistent_rms": consistent_rms,
        }

    def first(grad, old, step):
        if old.nu is None:
            return old._replace(mu=ema(old.mu, grad, beta))
        return old._replace(mu=ema(old.mu, grad, b1), nu=ema(old.nu, abs_sq(grad), b2))

    def second(axes, grad, old, new, step):
        if new.nu is None:
            average = weighted(new.mu, grad, *step.weights)
            to_matrices, to_tensor, (rows, columns) = as_matrices(grad.shape, *axes[step.path])
            eps = step.denominator.eps
            orthogonal = to_tensor(orthogonalize(to_matrices(average), coefficients, eps, preconditioning))
            width = max(1, columns / max(rows, 1)) ** 0.5 if consistent_rms is None else max(rows, columns) ** 0.5
            scale = -step.rate * width * (1 if consistent_rms is None else step.consistent_rms)
            change = scale * (jnp.sum(average.conj() * orthogonal) * orthogonal if adaptive else orthogonal)
        else:
            denominator = step.denominator(finite_quotient(new.nu, step.c2))
            change = weighted(new.mu, grad, *step.adam_weights) / denominator
        return change - finite_product(step.rate, step.decay)

    def layer(tree: Any, params: Any) -> optax.GradientTransformationExtraArgs:
        jax.tree_util.tree_map_with_path(inexact_dtype, tree)  # before functions of the user's see it
        axes = axes_of(tree)
        chosen = [each is not None for each in axes.values()]
        masks = True if mask is None else mask
        if callable(mask) and params is not None:
            thetas = leaves_like(jax.tree.structure(tree), params, "params")  # before the user's function sees them
            for (path, leaf), theta in zip(jax.tree_util.tree_leaves_with_path(tree), thetas, strict=True):
                array_like(path, leaf, theta, None, "the parameter")
            masks = mask(params)
        return leafwise(
            MuonState,
            first,
            functools.partial(second, axes),
            scalars,
            storage="float32",
            learning_rate=choose(tree, chosen, *learning_rates, "learning_rate"),
            weight_decay=choose(tree, chosen, *weight_decays, "weight_decay"),
            mask=choose(tree, chosen, masks, True, "weight_decay_mask"),
            sees_to_decay=True,
            mu=Moment(dtype=mu_dtype),
            nu=Moment(real=True, shape=lambda path, shape: shape if axes[path] is None else None),
        )

    def init(params: optax.Params) -> optax.OptState:
        def parts() -> dict[Any, str]:
            return {
                path: "adamw" if axes is None else f"orthogonalized, rows axis {axes[0]}, columns axis {axes[1]}"
                for path, axes in axes_of(params).items()
            }

        return note(layer(params, params).init(params), parts=parts)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **_: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        return layer(updates, params).update(updates, state, params)

    return optax.GradientTransformationExtraArgs(init, update)
