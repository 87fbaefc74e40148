"""A state stays where it starts, for every rule and storage and for shapes that divide badly."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from placing import specs
from test_family import FACTORIES, TABLE
from test_sharding import jit_as_users_do

from jaxopt_adam import abstract_state, state_shardings

pytestmark = pytest.mark.devices

P = PartitionSpec
STORAGES = ["float32", "bfloat16", "int8", "int4", {"nu": "int4"}]
LEAVES = {
    (8,): {
        "rows": ((64, 80), P("x", None)),
        "200": ((64, 200), P(None, "x")),
        "136": ((64, 136), P(None, "x")),
        "64": ((64, 64), P(None, "x")),
        "96": ((64, 96), P(None, "x")),
        "vector": ((5000,), P("x")),
        "vocabulary": ((1009, 96), P(None, "x")),
        "layers": ((4, 64, 40), P(None, "x", None)),
        "experts": ((8, 64, 32), P("x", None, None)),
        "heads": ((64, 2, 32), P("x", None, None)),
        "indivisible": ((7, 30), P()),
        "scalar": ((), P()),
    },
    (4, 2): {
        "both": ((128, 96), P("x", "y")),
        "200": ((64, 200), P("x", "y")),
        "square": ((64, 64), P("y", "x")),
        "layers": ((4, 64, 64), P(None, "x", "y")),
        "experts": ((8, 64, 96), P("x", None, "y")),
        "vector": ((5000,), P(("x", "y"))),
        "vocabulary": ((1009, 96), P(None, "y")),
    },
}
OPTIONS = {"soap": {"max_precond_dim": 64}}
ALONE = "adamw", "rmsprop", "amsgrad"
"""Rules that are tried with a second moment of 4 bits beside others of 32."""
SHARED = "adafactor", "adam_mini", "soap", "muon", "novograd"
"""Rules with statistics of another shape than the parameter's."""


SHORT = [("adamw", storage) for storage in ("float32", "int8", "int4")] + [(rule, "float32") for rule in SHARED]


ALL = [
    pytest.param(rule, storage, marks=() if (rule, storage) in SHORT else pytest.mark.layouts)
    for rule, factory in FACTORIES.items()
    for storage in (STORAGES if "moments" in inspect.signature(factory).parameters else STORAGES[:1])
    if isinstance(storage, str) or rule in ALONE
]


def made(rule, storage):
    options = {} if storage == "float32" else {"moments": storage}
    return FACTORIES[rule](learning_rate=0.1, **TABLE[rule].options, **OPTIONS.get(rule, {}), **options)


def arrays(sizes, seed, count):
    generator = np.random.default_rng(seed)
    return [
        {name: generator.standard_normal(shape).astype(np.float32) for name, (shape, _) in LEAVES[sizes].items()}
        for _ in range(count)
    ]


def put(tree, sizes, mesh):
    return {name: jax.device_put(leaf, NamedSharding(mesh, LEAVES[sizes][name][1])) for name, leaf in tree.items()}


def assert_same_specs(one, other, what):
    one, other = specs(one), specs(other)
    assert one.keys() == other.keys()
    assert {path: (spec, other[path]) for path, spec in one.items() if spec != other[path]} == {}, what


@pytest.mark.parametrize("sizes", LEAVES, ids=str)
@pytest.mark.parametrize(("rule", "storage"), ALL, ids=str)
def test_a_state_stays_where_it_starts(rule, storage, sizes):
    optimizer = made(rule, storage)
    update = jax.jit(optimizer.update)
    params, *gradients = arrays(sizes, 0, 3)
    names = ("x", "y")[: len(sizes)]
    mesh = jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(sizes))
    own = put(params, sizes, mesh)
    wanted = abstract_state(optimizer, own)
    starts = {
        "eager": optimizer.init(own),
        "jit": jax.jit(optimizer.init)(own),
        "out_shardings": jax.jit(optimizer.init, out_shardings=state_shardings(optimizer, own))(own),
    }
    for how, start in starts.items():
        assert_same_specs(start, wanted, how)
    state = starts["eager"]
    for grads in gradients:
        updates, state = jax.block_until_ready(update(put(grads, sizes, mesh), state, own))
        assert_same_specs(updates, own, "updates")
    assert_same_specs(state, starts["eager"], "after two updates")
    explicit = jax.make_mesh(sizes, names, axis_types=(AxisType.Explicit,) * len(sizes))
    with jax.set_mesh(explicit):
        own = put(params, sizes, explicit)
        start = optimizer.init(own)
        assert_same_specs(start, starts["eager"], "explicit, eager")
        assert_same_specs(jax.eval_shape(optimizer.init, own), start, "explicit, jit")
        assert_same_specs(jax.eval_shape(optimizer.update, own, start, own)[1], start, "explicit, updated")


BADLY = "200", "64", "vector", "layers", "both"


@pytest.mark.parametrize(
    "storage",
    [each if each in ("float32", "int8") else pytest.param(each, marks=pytest.mark.layouts) for each in STORAGES],
    ids=str,
)
def test_the_bits_are_those_of_one_device(storage):
    """For shapes that divide badly; where devices have fractions of blocks, they communicate the scales."""
    optimizer = made("adamw", storage)
    update = jit_as_users_do(optimizer.update)
    for sizes in LEAVES:
        params, *gradients = (
            {name: leaf for name, leaf in tree.items() if name in BADLY} for tree in arrays(sizes, 1, 3)
        )
        mesh = jax.make_mesh(sizes, ("x", "y")[: len(sizes)], axis_types=(AxisType.Auto,) * len(sizes))
        own = put(params, sizes, mesh)
        alone, together = optimizer.init(params), optimizer.init(own)
        for grads in gradients:
            expected = _, alone = update(grads, alone, params)
            got = _, together = jax.block_until_ready(update(put(grads, sizes, mesh), together, own))
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), jax.device_get(expected))


TYPED = {
    (2, 8, 4): P(None, "x"),
    (64, 200): P(None, "x"),
    (8, 16, 96): P("x"),
    (16, 40, 8): P(None, "x", None),
    (5000,): P("x"),
    (7, 30): P(),
}
"""Shapes and specs, of a leaf each, for what optax checks of the types of a state's arrays."""
EAGER = (64, 200), (7, 30)


def placed(types):
    """The shape, dtype and spec of each leaf; an abstract array that is whole may have no sharding."""
    return [(leaf.shape, leaf.dtype, getattr(leaf.sharding, "spec", P())) for leaf in jax.tree.leaves(types)]


@pytest.mark.parametrize(("rule", "storage"), ALL, ids=str)
def test_the_types_of_a_state(rule, storage):
    """Optax's checks: `init` of a structure, and the same types after `init` and `update`, within jit and without."""
    optimizer = made(rule, storage)
    for shape in TYPED:
        assert optimizer.init(jax.ShapeDtypeStruct(shape, jnp.float32)) is not None
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        params = {
            str(shape): jnp.zeros(shape, jnp.float16, device=NamedSharding(mesh, spec)) for shape, spec in TYPED.items()
        }
        types = jax.tree.map(jax.typeof, optimizer.init(params))
        assert types == jax.tree.map(jax.typeof, jax.jit(optimizer.init)(params))
        inside = jax.eval_shape(optimizer.init, params)
        assert placed(types) == placed(inside)
        assert placed(types) == placed(jax.eval_shape(optimizer.update, params, inside, params)[1])


@pytest.mark.parametrize(
    ("rule", "storage"),
    [("adamw", "float32"), ("adamw", "int8"), ("adafactor", "float32"), ("muon", "float32"), ("soap", "float32")],
)
def test_the_types_of_a_state_after_an_update_without_jit(rule, storage):
    """On several devices it runs operation by operation, and each is compiled, so there are but two leaves."""
    optimizer = made(rule, storage)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        params = {
            str(shape): jnp.zeros(shape, jnp.float16, device=NamedSharding(mesh, TYPED[shape])) for shape in EAGER
        }
        state = optimizer.init(params)
        types = jax.tree.map(jax.typeof, state)
        for update in (optimizer.update, jax.jit(optimizer.update)):
            _, after = update(params, state, params)
            assert types == jax.tree.map(jax.typeof, after)
