"""Programs for type checkers: correct ones, and mistakes, each of which must be reported on its line."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax  # pyright: ignore[reportMissingTypeStubs]
from jax import Array
from jax.typing import ArrayLike

from jaxopt_adam import (
    Optimizer,
    adafactor,
    adam,
    adam_mini,
    adamw,
    ademamix,
    adopt,
    cautious,
    checked,
    grid,
    lifted,
    master_weights,
    minimize,
    muon,
    nbytes,
    observe,
    optimizer,
    prodigy,
    schedule_free_adamw,
    sgd,
    soap,
)
from jaxopt_adam.storage import Blockwise, Dense, StorageName


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: float
    bias: float


def warmup(count: ArrayLike) -> Array:
    return 0.1 * jax.numpy.minimum(1, count)


def parabola(x: Array) -> Array:
    return (x - 3) ** 2


def is_kernel(params: Any) -> Any:
    return jax.tree.map(np.ndim, params)


def storage_of(path: tuple[Any, ...]) -> str:
    return "int8" if len(path) > 1 else "float32"


def codes_of(path: tuple[Any, ...]) -> dict[str, str | Dense]:
    return {"mu": storage_of(path), "nu": Dense()}


def one_block(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:0] if "bias" in path else shape[:1]


@optimizer
def signum(learning_rate: float, momentum: ArrayLike = 0.9) -> optax.GradientTransformationExtraArgs:
    return optax.chain(optax.trace(momentum), optax.scale_by_sign(), optax.scale(-learning_rate))


def clipped(rate: ArrayLike, limit: Any = 0.9) -> Optimizer:
    return adam(rate, b1=limit)


def observed(learning_rate: Any) -> Optimizer:
    return observe(adam(learning_rate))


def seen(*values: object) -> None:
    assert all(value is not None for value in values)


def correct(array: Array) -> None:
    """Programs that run, and of which a checker in its strict mode has nothing to say."""
    # Numbers: Python's, NumPy's, JAX's.
    adam(1)
    adam(1e-3)
    adam(np.float64(1e-3), b1=np.float32(0.9), eps=np.float16(1e-4))
    adam(np.array(1e-3), b1=0, b2=array)
    adam(array)
    adam(learning_rate=None)
    # Schedules.
    adam(warmup)
    adam(lambda count: 0.1)
    adam(optax.cosine_decay_schedule(1e-3, 100))
    adam(optax.warmup_cosine_decay_schedule(0.0, 1e-3, 10, 100))
    prodigy(optax.constant_schedule(1.0), betas=(0.9, np.float32(0.99)))
    prodigy(betas=[0.9, 0.99])
    schedule_free_adamw(warmup, warmup_steps=10, b1=np.float32(0.9))
    ademamix(0.1, b3=warmup, alpha=lambda count: 5.0)
    adopt(0.1, clip_value_fn=warmup)
    # Trees of these.
    adam({"w": 1e-3, "b": warmup})
    adam([1e-3, (np.float32(0.1), None)])
    adam(Layer(0.1, 0.2))
    adam(jax.tree.map(float, Layer(0.1, 0.2)))
    adamw(0.1, weight_decay={"w": 0.1, "b": np.float32(0)}, mask={"w": True, "b": False})
    adamw(0.1, mask=is_kernel)
    adamw(0.1, mask=None)
    # Storages.
    adamw(0.1, moments="int8")
    adamw(0.1, moments=Blockwise(8, rounding="nearest"))
    adamw(0.1, moments={"mu": "int8", "nu": Blockwise(8)})
    adamw(0.1, moments=storage_of)
    adamw(0.1, moments=codes_of)
    named: StorageName = "int4"
    adamw(0.1, moments=named)
    adam(0.1, mu_dtype=np.float16, nesterov=True)
    adam(0.1, mu_dtype="bfloat16")
    # Others.
    sgd(0.1, momentum=None, accumulator_dtype=np.float32)
    adafactor(weight_decay_rate=None, momentum=0.9)
    soap(0.1, precondition_frequency=5, shampoo_decay=None)
    axes = optax.contrib.MuonDimensionNumbers((0,), (1,))
    muon(0.1, ns_coeffs=(3.4445, -4.775, 2.0315), muon_weight_dimension_numbers={"w": axes, "b": None})
    muon(0.1, ns_coeffs="dion", adam_learning_rate=warmup, preconditioning="aol")
    adam_mini(0.1, blocks=one_block)
    adam_mini(0.1, blocks=lambda path, shape: shape[:1])
    # Those of optax.
    lifted.clip_by_global_norm(array)
    lifted.scale_by_schedule(warmup)
    lifted.MultiSteps(lifted.lars(0.1, weight_decay_mask=is_kernel), every_k_schedule=4)
    lifted.apply_if_finite(adam(0.1), 3).replace(learning_rate=0.2)
    # Wrappers and chains.
    made = checked(master_weights(cautious(adamw(1e-3, moments="int8")), bits=24))
    observe(optax.chain(optax.clip(1.0), adam(None)))
    signum(0.1, momentum=0.5)
    seen(made.replace(learning_rate=0.2).hyperparameters["optimizer"], nbytes(made.init(array)))
    # Sweeps. A factory of one's own is given arrays where it takes arrays.
    grid(adam, learning_rate=[1e-3, 1e-2], b1=[0.8, 0.9])
    grid(adam, learning_rate=(1e-3, 1e-2), b1=np.array([0.8, 0.9]), nesterov=True, moments="int8")
    grid(adam, [1e-3, 1e-2], b1=0.5, eps=1e-6)
    grid(adam, learning_rate=range(1, 3))
    grid(adam, learning_rate=warmup, b2=[0.9, 0.99])
    grid(signum, learning_rate=[0.1, 0.2], momentum=[0.5, 0.9])
    grid(clipped, rate=np.array([0.1, 0.2]), limit=[0.5, 0.9])
    grid(observed, learning_rate=[0.1, 0.2])
    grid(functools.partial(sgd, momentum=0.9), learning_rate=[0.1, 0.2])
    rates: dict[str, Any] = {"learning_rate": [0.1, 0.2]}
    factories: list[Callable[..., Optimizer]] = [adam, sgd]
    for factory in factories:
        grid(factory, learning_rate=[0.1, 0.2])
        grid(factory, **rates)
    for factory in (adam, sgd):
        grid(factory, learning_rate=[0.1, 0.2])
    optimizers, table = grid(adam, **rates)
    seen(optimizers.init, adam(**table[0]))
    # Loops.
    result = minimize(parabola, 0.0, adam(0.1), tol=np.float32(1e-3), max_steps=100)
    seen(result.x, result.status_name)
    minimize(parabola, array, optax.chain(optax.clip(1.0), adam(0.1)), max_steps=3)


def mistakes() -> None:
    """Mistakes, which do not run."""
    adam("fast")  # mistake
    adam()  # mistake
    adam(adam).update(1.0, adam(0.1).init(1.0))  # mistake
    adam({1e-3})  # mistake
    adam(lambda count: "fast").update(1.0, adam(0.1).init(1.0))  # mistake
    adam(1e-3, beta1=0.9)  # mistake
    adam(1e-3, b1="0.9")  # mistake
    adam(1e-3, b1=[0.9])  # mistake
    adam(1e-3, nesterov="yes")  # mistake
    adam(1e-3, 0.9, 0.999, 1e-8, 0.0, None, True)  # mistake
    adamw(1e-3, moments="int7")  # mistake
    adamw(1e-3, moments=8)  # mistake
    adamw(1e-3, moments={"mu": "int7"})  # mistake
    adamw(1e-3, moments=float)  # mistake
    adamw(1e-3, mask="kernels")  # mistake
    adamw(1e-3, mask=0.5)  # mistake
    adamw(1e-3, weight_decay="1e-4")  # mistake
    prodigy(betas=0.9)  # mistake
    prodigy(betas=(0.9, 0.99, 0.999))  # mistake
    soap(precondition_frequency=2.5)  # mistake
    muon(1e-3, preconditioning="frobenious")  # mistake
    muon(1e-3, ns_coeffs="fast")  # mistake
    adam_mini(1e-3, blocks="rows")  # mistake
    grid(adam, learning_rte=[1e-3])  # mistake
    grid(adam, learning_rate=[1e-3], bl=[0.9])  # mistake
    grid(adam, learning_rate="fast", b1=[0.9])  # mistake
    grid(adam(1e-3), learning_rate=[1e-3])  # mistake
    grid(clipped, rates=np.array([1e-3]))  # mistake
    minimize(parabola, 1.0, adam)  # mistake
    minimize(parabola, 1.0, "adam")  # mistake
    lifted.clip_by_global_norm(max_delta=1.0)  # mistake
    lifted.clip("far")  # mistake
    lifted.apply_if_finite(adam, 3)  # mistake
    cautious(adam)  # mistake
    checked("adam")  # mistake
    master_weights(adam(1e-3), bits="24")  # mistake
    adam(1e-3).init()  # mistake
