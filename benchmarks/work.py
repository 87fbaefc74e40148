"""The trees and the steps that scenes have in common."""

import importlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.contest import Parts, Prepared

Shapes = Mapping[str, tuple[int, ...]]


def transformer(layers: int = 22, width: int = 528) -> Shapes:
    """The shapes of a transformer's layers, twelve leaves each; 264 leaves and 74 million numbers."""
    layer = {
        "norm1/scale": (width,),
        "norm1/bias": (width,),
        "attention/in": (width, 3 * width),
        "attention/in_bias": (3 * width,),
        "attention/out": (width, width),
        "attention/out_bias": (width,),
        "norm2/scale": (width,),
        "norm2/bias": (width,),
        "mlp/in": (width, 4 * width),
        "mlp/in_bias": (4 * width,),
        "mlp/out": (4 * width, width),
        "mlp/out_bias": (width,),
    }
    return {f"{index}/{name}": shape for index in range(layers) for name, shape in layer.items()}


def alike(leaves: int, elements: int, shapes: int = 1) -> Shapes:
    """So many leaves, of one shape or of a few."""
    return {str(index): (1 + index % shapes, elements // (1 + index % shapes)) for index in range(leaves)}


def numbers(shapes: Shapes, dtype: Any = jnp.float32, seed: int = 0) -> dict[str, jax.Array]:
    """Normal numbers of these shapes."""
    generator = np.random.default_rng(seed)
    whole = generator.standard_normal(max(map(math.prod, shapes.values())), np.float32)
    return {name: jnp.asarray(whole[: math.prod(shape)].reshape(shape), dtype) for name, shape in shapes.items()}


def abstract(shapes: Shapes, dtype: Any = jnp.float32) -> dict[str, jax.ShapeDtypeStruct]:
    """Arrays of these shapes that nobody fills."""
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}


def stepped(optimizer: Any, params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
    """The parameters and the state after a step."""
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def step(
    optimizer: optax.GradientTransformation, shapes: Shapes, dtype: Any = jnp.float32, sharding: Any = None
) -> Callable[[], Prepared]:
    """A contestant: a compiled step whose old arrays are donated."""

    def prepare() -> Prepared:
        params, grads = (jax.device_put(numbers(shapes, dtype, seed), sharding) for seed in (0, 1))
        # Copied, since a state may start as the parameters themselves, which can be donated once only.
        carry: Any = params, jax.tree.map(jnp.array, optimizer.init(params))
        function = jax.jit(lambda params, state, grads: stepped(optimizer, params, state, grads), donate_argnums=(0, 1))
        compiled = function.lower(*carry, grads).compile()

        def run() -> Parts:
            nonlocal carry
            start = time.perf_counter()
            carry = jax.block_until_ready(compiled(*carry, grads))
            return {"step": time.perf_counter() - start}

        return Prepared(run, counts(compiled))

    return prepare


def counts(compiled: Any) -> dict[str, float]:
    """Bytes of temporaries and bytes that the compiled program reads and writes."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    found = {} if memory is None else {"temporaries": float(memory.temp_size_in_bytes)}
    return found if not cost else found | {"bytes accessed": float(cost["bytes accessed"])}


def copy(shapes: Shapes, arrays: int = 7) -> Callable[[], Prepared]:
    """A contestant: a plain loop over the bytes of a float32 Adam step, the limit of the machine.

    Such a step reads parameters, gradients and two moments and writes all of them but the gradients: seven arrays.
    """

    def prepare() -> Prepared:
        size = sum(map(math.prod, shapes.values())) * arrays // 2
        compiled = (
            jax.jit(lambda x: x + 1, donate_argnums=0).lower(jax.ShapeDtypeStruct((size,), jnp.float32)).compile()
        )
        array = jnp.zeros(size)

        def run() -> Parts:
            nonlocal array
            start = time.perf_counter()
            array = jax.block_until_ready(compiled(array))
            return {"step": time.perf_counter() - start}

        return Prepared(run)

    return prepare


def torch_step(make: Callable[[Any], Any], shapes: Shapes) -> Callable[[], Prepared]:
    """A contestant: a step of an optimizer of PyTorch, which `make` makes of a list of parameters."""

    def prepare() -> Prepared:
        import torch  # pyright: ignore[reportMissingImports]

        params = [torch.from_numpy(np.array(each)).requires_grad_() for each in numbers(shapes).values()]
        for param, grad in zip(params, numbers(shapes, seed=1).values(), strict=True):
            param.grad = torch.from_numpy(np.array(grad))
        optimizer = make(params)

        def run() -> Parts:
            start = time.perf_counter()
            optimizer.step()
            return {"step": time.perf_counter() - start}

        return Prepared(run)

    return prepare


def torch_adam(fused: bool) -> Callable[[Any], Any]:
    """PyTorch's Adam, with its fused loop or with its loops over lists of tensors."""

    def make(params: Any) -> Any:
        import torch  # pyright: ignore[reportMissingImports]

        return torch.optim.Adam(params, 1e-3, fused=fused, foreach=not fused)

    return make


def of_module(module: str, name: str) -> Callable[[Any], Any]:
    """An optimizer for PyTorch, from another library."""
    return lambda params: getattr(importlib.import_module(module), name)(params, lr=1e-3)


def compilation(optimizer: Any, shapes: Shapes) -> Callable[[], Prepared]:
    """A contestant: the trace, the lowering and the compilation of a step, with nothing cached."""

    def prepare() -> Prepared:
        params = abstract(shapes)
        state = jax.eval_shape(optimizer.init, params)

        def run() -> Parts:
            jax.clear_caches()
            start = time.perf_counter()
            traced = jax.jit(lambda *given: stepped(optimizer, *given), donate_argnums=(0, 1)).trace(
                params, state, params
            )
            after_trace = time.perf_counter()
            lowered = traced.lower()
            after_lowering = time.perf_counter()
            lowered.compile()
            end = time.perf_counter()
            return {
                "step": end - start,
                "trace": after_trace - start,
                "lower": after_lowering - after_trace,
                "compile": end - after_lowering,
            }

        return Prepared(run)

    return prepare
