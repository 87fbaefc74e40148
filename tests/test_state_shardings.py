"""The shardings of a state before it is made: FSDP, ZeRO-1, host memory, and what each device holds."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from placing import specs

from jaxopt_adam import (
    abstract_state,
    adafactor,
    adam_mini,
    adamw,
    cautious,
    chain,
    checked,
    masked,
    master_weights,
    named_chain,
    nbytes,
    observe,
    partition,
    placement,
    rmsprop,
    soap,
    state_shardings,
    stochastic_rounding,
)
from jaxopt_adam.lifted import clip_by_global_norm

pytestmark = pytest.mark.devices

P = PartitionSpec
WHOLE = P()
SHAPES = {
    "kernel": (64, 200),
    "experts": (8, 32, 64),
    "vector": (5000,),
    "wide": (7, 1024),
    "odd": (7, 30),
    "scalar": (),
}
CUT = {"kernel", "experts", "vector", "wide"}
"""The leaves of which eight devices can have a part each; of the wide one along its last axis."""


def optimizers():
    return {
        "float32": adamw(1e-2),
        "bfloat16": adamw(1e-2, moments="bfloat16"),
        "int8": adamw(1e-2, moments="int8"),
        "master weights": master_weights(adamw(1e-2), bits=24),
        "chain": chain(clip_by_global_norm(1.0), adamw(1e-2)),
        "MultiSteps": optax.MultiSteps(adamw(1e-2), 2).gradient_transformation(),
    }


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def trees(count, dtype=np.float32, shapes=SHAPES):
    generator = np.random.default_rng(0)
    return [
        {name: generator.standard_normal(shape).astype(dtype) for name, shape in shapes.items()} for _ in range(count)
    ]


def structs(mesh, spec=WHOLE, dtype=jnp.float32, shapes=SHAPES):
    where = NamedSharding(mesh, spec)
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=where) for name, shape in shapes.items()}


def step_of(optimizer):
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


class TestCut:
    @pytest.mark.parametrize("name", optimizers())
    def test_zero_1_is_replicated_to_the_bit(self, mesh, name):
        """After five steps, with an all-gather for each parameter that is cut, and none of codes."""
        optimizer = optimizers()[name]
        dtype = jnp.bfloat16 if name == "master weights" else np.float32
        params, *gradients = trees(6, dtype)
        whole = NamedSharding(mesh, P())
        params = jax.device_put(params, whole)
        shardings = state_shardings(optimizer, params, cut="data")
        cut = jax.jit(optimizer.init, out_shardings=shardings)(params)
        everywhere = jax.tree.map(lambda _: whole, params)
        step = jax.jit(step_of(optimizer), out_shardings=(everywhere, shardings), donate_argnums=1)
        replicated = jax.jit(step_of(optimizer), donate_argnums=1)
        compiled = step.lower(params, cut, params).compile().as_text()
        gathers = re.findall(r"= (\S+) all-gather\(", compiled)
        assert len(gathers) == len(CUT)
        assert not any(gather.startswith(("u8", "u16", "s8")) for gather in gathers)
        one = other = params
        state = optimizer.init(params)
        for grads in jax.device_put(gradients, whole):
            one, cut = jax.block_until_ready(step(one, cut, grads))
            other, state = jax.block_until_ready(replicated(other, state, grads))
        assert jax.tree.map(lambda leaf: leaf.sharding, cut) == shardings
        jax.tree.map(np.testing.assert_array_equal, jax.device_get((one, cut)), jax.device_get((other, state)))

    @pytest.mark.parametrize("name", optimizers())
    def test_each_device_has_an_eighth(self, mesh, name):
        """Of everything but the leaves that cannot be divided."""
        dtype = jnp.bfloat16 if name == "master weights" else np.float32
        state = abstract_state(optimizers()[name], structs(mesh, dtype=dtype), cut="data")
        table = placement(state, large=1)
        listed = sum(array.nbytes for array in table.whole)
        assert nbytes(state, on_each_device=True) == (nbytes(state) - listed) / 8 + listed
        assert {array.name.split("'")[1] for array in table.whole if "'" in array.name} == {"odd", "scalar"}

    def test_statistics_of_other_shapes_are_cut_as_far_as_they_divide(self, mesh):
        shapes = {"kernel": (64, 200), "odd": (9, 64)}
        of = lambda optimizer: specs(abstract_state(optimizer, structs(mesh, shapes=shapes), cut="data"))
        assert of(adafactor(0.1, min_dim_size_to_factor=8)) == {
            ".count": (),
            ".v_row['kernel']": ("data",),
            ".v_row['odd']": (),
            ".v_col['kernel']": ("data",),
            ".v_col['odd']": ("data",),
        }
        assert of(adam_mini(0.1))[".nu['kernel']"] == (None, "data")
        of_soap = of(soap(0.1))
        assert {of_soap[f".{name}[{axis}]['kernel']"] for name in ("factors", "bases") for axis in (0, 1)} == {
            ("data",)
        }
        assert of_soap[".factors[0]['odd']"] == ()
        assert of_soap[".factors[1]['odd']"] == ("data",)

    def test_of_codes_the_last_axis_only_in_whole_blocks(self, mesh):
        shapes = {"whole": (7, 1024), "fractions": (127, 40)}
        of = specs(abstract_state(adamw(0.1, moments="int8"), structs(mesh, shapes=shapes), cut="data"))
        assert of[".mu['whole']"] == of[".nu['whole']"] == (None, "data")
        assert of[".mu['fractions']"] == of[".nu['fractions']"] == ()
        of = specs(abstract_state(rmsprop(0.1, moments="int4"), structs(mesh, shapes=shapes), cut="data"))
        assert of[".nu.codes['whole']"] == of[".nu.scales['whole']"] == (None, "data")
        assert of[".nu.codes['fractions']"] == of[".nu.scales['fractions']"] == ()

    def test_an_axis_that_is_divided_already_is_divided_further(self):
        mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
        shapes = {"kernel": (64, 200)}
        for spec, cut, expected in (
            (P("model", None), "data", (("model", "data"),)),
            (P(None, "model"), "data", ("data", "model")),
            (P("data", None), "data", ("data",)),
            (P(), ("data", "model"), (("data", "model"),)),
            (P(), ["model"], ("model",)),
        ):
            of = specs(abstract_state(adamw(0.1), structs(mesh, spec, shapes=shapes), cut=cut))
            assert of[".mu['kernel']"] == of[".nu['kernel']"] == expected

    def test_errors(self, mesh):
        with pytest.raises(ValueError, match=r"cut must be an axis of the mesh, one of data, got 'model'"):
            state_shardings(adamw(0.1), structs(mesh), cut="model")
        with pytest.raises(TypeError, match=r"leaf \['kernel'\] must be .* NamedSharding, got SingleDeviceSharding"):
            state_shardings(adamw(0.1), {"kernel": jnp.ones(3)})
        with pytest.raises(TypeError, match=r"the only leaf must be .* NamedSharding, got float"):
            state_shardings(adamw(0.1), 1.0)
        other = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
        with pytest.raises(ValueError, match=r"leaf \['b'\] must be on the mesh of the other parameters"):
            state_shardings(adamw(0.1), {"a": structs(mesh)["odd"], "b": structs(other)["odd"]})
        with pytest.raises(ValueError, match="params must have at least one leaf"):
            state_shardings(adamw(0.1), {})
        with pytest.raises(ValueError, match=r"memory_kind must be one of .*device.*, got 'hot'"):
            state_shardings(adamw(0.1), structs(mesh), memory_kind="hot")


INT8 = adamw(1e-3, moments="int8")
WRAPPERS = {
    "cautious": cautious(INT8),
    "checked": checked(INT8),
    "observe": observe(INT8),
    "master_weights": master_weights(INT8),
    "stochastic_rounding": stochastic_rounding(INT8),
    "chain": chain(clip_by_global_norm(1.0), observe(INT8)),
    "named_chain": named_chain(("first", clip_by_global_norm(1.0)), ("second", INT8)),
    "partition": partition(
        {"a": INT8, "b": adamw(1e-3, moments="int4")}, {"kernel": "a", "whole": "b", "fractions": "a"}
    ),
    "masked": masked(INT8, True),
    "apply_if_finite": optax.apply_if_finite(INT8, 3),
    "MultiSteps": optax.MultiSteps(INT8, 2).gradient_transformation(),
    "optax.partition": optax.partition({"a": INT8}, "a"),
}


class TestOthers:
    def test_every_transformation_of_optax(self, mesh):
        """Those with few arguments; the state's tree and shapes are those of init."""
        params = structs(mesh, shapes={"kernel": (64, 512), "vector": (24,)})
        plain = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
        tried = 0
        for module in (optax, optax.contrib):
            for name in dir(module):
                made = transformation(getattr(module, name))
                try:
                    expected = jax.eval_shape(made.init, plain)
                except Exception:  # one that needs other parameters, or that is no transformation
                    continue
                tried += 1
                for cut in (None, "data"):
                    state = abstract_state(made, params, cut=cut)
                    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
                        lambda leaf: (leaf.shape, leaf.dtype), expected
                    ), name
        assert tried > 90

    @pytest.mark.parametrize("name", WRAPPERS)
    def test_codes_and_scales_share_a_layout_within_every_wrapper(self, mesh, name):
        shapes = {"kernel": (64, 200), "whole": (7, 1024), "fractions": (127, 40)}
        expected = {"kernel": ("data",), "whole": (None, "data"), "fractions": ()}
        state = abstract_state(WRAPPERS[name], structs(mesh, shapes=shapes), cut="data")
        found = {
            (leaf, spec)
            for path, spec in specs(state).items()
            for leaf in shapes
            if re.search(rf"(mu|nu)\['{leaf}'\]", path)
        }
        assert found == set(expected.items())

    def test_boxes_stay_and_name_the_axes_of_their_arrays(self, mesh):
        boxed = {"kernel": nn.Partitioned(structs(mesh, shapes={"it": (64, 200)})["it"], ("embed", "mlp"))}
        state = abstract_state(adamw(0.1, moments="int8"), boxed, cut="data")
        assert (state.mu["kernel"].names, state.nu["kernel"].names) == (("embed", "mlp"), ("embed", None))
        assert specs(state)[".mu['kernel'].value"] == specs(state)[".nu['kernel'].value"] == ("data",)
        state = abstract_state(adafactor(0.1, min_dim_size_to_factor=8), boxed)
        assert (state.v_row["kernel"].names, state.v_col["kernel"].names) == (("embed",), ("mlp",))

    def test_within_a_context_of_a_mesh(self, mesh):
        explicit = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
        expected = specs(abstract_state(adamw(0.1, moments="int8"), structs(mesh), cut="data"))
        for each in (mesh, explicit):
            with jax.set_mesh(each):
                for own in (mesh, explicit):
                    state = abstract_state(adamw(0.1, moments="int8"), structs(own), cut="data")
                    assert specs(state) == expected
                    assert state.count.sharding.mesh == own

    def test_devices_that_there_are_not(self):
        mesh = AbstractMesh((1024,), ("data",), axis_types=(AxisType.Auto,))
        params = {"kernel": jax.ShapeDtypeStruct((4096, 4096), jnp.float32, sharding=NamedSharding(mesh, P()))}
        state = abstract_state(adamw(0.1), params, cut="data")
        assert nbytes(state, on_each_device=True) == 2 * 4 * 4096**2 // 1024 + 4

    @pytest.mark.parametrize(
        "optimizer", [adamw(0.1, moments="int8"), observe(adamw(0.1)), stochastic_rounding(adamw(0.1))], ids=str
    )
    @pytest.mark.skipif(
        jax.__version_info__ < (0, 10), reason="XLA of JAX 0.9 divides no program with several kinds of memory"
    )
    def test_host_memory(self, mesh, optimizer):
        """Born in, stepped through and staying in the memory of the host, with the same bits."""
        dtype = jnp.bfloat16 if "stochastic" in str(optimizer) else np.float32
        params, *gradients = jax.device_put(trees(3, dtype), NamedSharding(mesh, P()))
        on_host = state_shardings(optimizer, params, cut="data", memory_kind="pinned_host")
        on_device = state_shardings(optimizer, params, cut="data")
        assert {leaf.memory_kind for leaf in jax.tree.leaves(on_host)} == {"pinned_host"}
        state = jax.jit(optimizer.init, out_shardings=on_host)(params)
        other = jax.jit(optimizer.init, out_shardings=on_device)(params)

        def step(grads, state, params):
            updates, state = optimizer.update(grads, jax.device_put(state, on_device), params)
            return updates, jax.device_put(state, on_host)

        step = jax.jit(step, out_shardings=(None, on_host), donate_argnums=1)
        plain = jax.jit(optimizer.update, out_shardings=(None, on_device), donate_argnums=1)
        for grads in gradients:
            updates, state = jax.block_until_ready(step(grads, state, params))
            expected, other = jax.block_until_ready(plain(grads, other, params))
            assert jax.tree.map(lambda leaf: leaf.sharding, state) == on_host
            jax.tree.map(
                np.testing.assert_array_equal, jax.device_get((updates, state)), jax.device_get((expected, other))
            )


def transformation(factory):
    """What a factory makes from no argument, or from a learning rate; None if it makes nothing that way."""
    for arguments in ((), (0.1,)):
        try:
            made = factory(*arguments)
        except Exception:
            continue
        if hasattr(made, "init") and hasattr(made, "update"):
            return made
    return None


class TestPlacement:
    def test_bytes_on_each_device(self, mesh):
        where = {"kernel": P("data"), "experts": P(None, None, "data"), "vector": P()}
        tree = {
            name: jax.device_put(jnp.zeros(SHAPES[name]), NamedSharding(mesh, spec)) for name, spec in where.items()
        }
        assert nbytes(tree) == 4 * (64 * 200 + 8 * 32 * 64 + 5000)
        assert nbytes(tree, on_each_device=True) == 4 * (64 * 200 // 8 + 8 * 32 * 64 // 8 + 5000)
        # An array that only one of the devices has, and what has no place.
        tree["one"] = jax.device_put(jnp.zeros(100), jax.devices()[3])
        tree["host"] = np.zeros(10, np.float32)
        assert nbytes(tree, on_each_device=True) == 4 * (64 * 200 // 8 + 8 * 32 * 64 // 8 + 5000 + 100 + 10)
        assert nbytes(jnp.zeros(10), on_each_device=True) == nbytes(1.0, on_each_device=True) * 10 == 40

    def test_what_is_large_and_whole_is_marked(self, mesh):
        state = abstract_state(adamw(0.1), structs(mesh), cut="data")
        table = placement(state, large=500)
        assert [array.name for array in table.whole] == [".mu['odd']", ".nu['odd']"]
        assert str(table).count("whole (!)") == 2
        assert str(table).endswith("(!) large, at least 500 bytes, and whole on every device: 2")
        assert table.nbytes == nbytes(state)
        assert table.nbytes_on_each_device == nbytes(state, on_each_device=True)
        assert "(!)" not in str(placement(jnp.zeros(1000)))

    def test_many_numbers_have_one_row(self, mesh):
        table = placement(abstract_state(observe(adamw(0.1)), structs(mesh)))
        numbers = [array for array in table.arrays if array.text.endswith("[]")]
        assert len(numbers) > 40
        assert f"{len(numbers)} numbers" in str(table)
        assert len(str(table).splitlines()) == len(table.arrays) - len(numbers) + 3
        assert "scalar" in str(placement(abstract_state(adamw(0.1), structs(mesh))))

    def test_memory_that_is_not_the_devices(self, mesh):
        state = abstract_state(adamw(0.1), structs(mesh), memory_kind="pinned_host")
        assert "whole in pinned_host" in str(placement(state))
