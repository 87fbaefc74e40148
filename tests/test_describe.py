"""The table that says what an optimizer will do with each parameter."""

import equinox
import jax
import jax.numpy as jnp
import optax
import pytest
from public import RULES

import jaxopt_adam
from jaxopt_adam import (
    adafactor,
    adam,
    adam_mini,
    adamw,
    cautious,
    checked,
    describe,
    lion,
    master_weights,
    muon,
    nbytes,
    observe,
    prodigy,
    schedule_free_adamw,
    sgd,
    soap,
    stochastic_rounding,
)
from jaxopt_adam.storage import Blockwise

PARAMS = {
    "bias": jax.ShapeDtypeStruct((16,), jnp.bfloat16),
    "kernel": jax.ShapeDtypeStruct((12, 16, 16), jnp.float32),
    "stack": jax.ShapeDtypeStruct((12, 16), jnp.float32),
    "wte": jax.ShapeDtypeStruct((64, 128), jnp.float32),
}


def rows(optimizer, params=PARAMS):
    """The lines of the table by the name of the leaf."""
    return {leaf.path.split("'")[1] if leaf.path else "": leaf for leaf in describe(optimizer, params).leaves}


def column(field, optimizer, params=PARAMS):
    return {name: getattr(leaf, field) for name, leaf in rows(optimizer, params).items()}


FACTORIES = list(RULES)
RATE = {name: {} if name in ("prodigy", "schedule_free_adamw") else {"learning_rate": 0.25} for name in FACTORIES}
WRAPPERS = {
    "master_weights": lambda inner: master_weights(inner),
    "stochastic_rounding": stochastic_rounding,
    "cautious": cautious,
    "observe": observe,
    "checked": checked,
    "chain": lambda inner: optax.chain(optax.clip_by_global_norm(1.0), inner),
    "MultiSteps": lambda inner: optax.MultiSteps(inner, 4),
    "apply_if_finite": lambda inner: optax.apply_if_finite(inner, 3),
    "masked": lambda inner: optax.masked(inner, True),
    "nested": lambda inner: optax.chain(optax.clip(1.0), observe(cautious(master_weights(inner)))),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_of_every_rule(name):
    optimizer = getattr(jaxopt_adam, name)(**RATE[name])
    table = describe(optimizer, PARAMS)
    state = jax.eval_shape(optimizer.init, PARAMS)
    assert table.optimizer == repr(optimizer)
    assert table.state_nbytes == nbytes(state)
    assert table.params_nbytes == nbytes(PARAMS)
    counts = [each for each in state if isinstance(each, jax.ShapeDtypeStruct)]
    assert sum(leaf.nbytes for leaf in table.leaves) == nbytes(state) - nbytes(counts)
    for leaf, (path, param) in zip(table.leaves, jax.tree_util.tree_leaves_with_path(PARAMS), strict=True):
        assert leaf[:3] == (jax.tree_util.keystr(path), param.shape, str(param.dtype))
        assert leaf.rule.partition(",")[0] == name
        assert leaf.learning_rate == ("0.25" if RATE[name] else {"prodigy": "1"}.get(name, "0.0025"))


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_within_wrappers_chains_and_the_like(wrapper):
    """The notes of the rule are the same, with the wrapper's own entries beside them."""
    inner = muon(0.1, weight_decay=0.5, weight_decay_mask=lambda params: {name: name != "wte" for name in PARAMS})
    alone, wrapped = rows(inner), rows(WRAPPERS[wrapper](inner))
    for name, leaf in wrapped.items():
        assert leaf.rule.partition(" + ")[0] == alone[name].rule
        assert (leaf.learning_rate, leaf.weight_decay) == (alone[name].learning_rate, alone[name].weight_decay)
        assert alone[name].moments.items() <= leaf.moments.items()
    more = {"master_weights": {"correction": "int8"}, "nested": {"correction": "int8"}}
    more |= {"MultiSteps": {"acc_grads": "float32"}}
    added = wrapped["bias"].moments.items() - alone["bias"].moments.items()
    assert dict(added) == more.get(wrapper, {})


def test_muon_shows_which_leaves_are_matrices():
    """Biases in a stack are one matrix to it, kernels in a stack none."""
    matrix = "muon, orthogonalized, rows axis 0, columns axis 1"
    assert column("rule", muon(0.1)) == {"bias": "muon, adamw", "kernel": "muon, adamw", "stack": matrix, "wte": matrix}
    numbers = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    by_path = muon(0.1, matrix_axes=lambda path, shape: numbers if "kernel" in path else None)
    assert column("rule", by_path)["kernel"] == "muon, orthogonalized, rows axis -2, columns axis -1"
    assert column("rule", by_path)["stack"] == "muon, adamw"
    assert column("moments", by_path)["kernel"] == {"mu": "float32"}
    assert column("learning_rate", muon(0.1, adam_learning_rate=0.3))["kernel"] == "0.3"


def test_adam_mini_shows_its_blocks():
    nu = {name: moments["nu"] for name, moments in column("moments", adam_mini(0.1)).items()}
    assert nu == {
        "bias": "float32[1]",
        "kernel": "float32[1, 1, 16]",
        "stack": "float32[1, 16]",
        "wte": "float32[64, 1]",
    }


def test_rules_that_treat_leaves_in_another_way_show_it():
    factored = column("moments", adafactor(min_dim_size_to_factor=64))
    assert factored["wte"] == {"v_row": "float32[64]", "v_col": "float32[128]"}
    assert factored["stack"] == {"v": "float32"}
    bases = column("moments", soap(max_precond_dim=100))
    assert bases["wte"]["bases"] == "[float32[64, 64], none]"
    assert "bases" not in bases["bias"]


def test_how_moments_are_stored():
    by_name = column("moments", adamw(0.1, moments={"nu": Blockwise(4, block_size=32), "mu": "bfloat16"}))
    assert by_name["wte"] == {"mu": "bfloat16", "nu": "4 bits, blocks of 16"}
    assert by_name["kernel"] == {"mu": "bfloat16", "nu": "float32"}  # too small
    by_path = column("moments", adam(0.1, moments=lambda path: "int8" if "wte" in str(path) else "float32"))
    assert by_path["wte"] == {"mu": "8 bits, blocks of 16", "nu": "8 bits, blocks of 16"}
    assert column("moments", lion(0.1, moments="int8"))["wte"] == {"mu": "8 bits, blocks of 16"}


def test_rates_and_decays():
    optimizer = adamw(
        {"bias": 0.5, "kernel": lambda count: 0.1, "stack": 0.0, "wte": jnp.float32(0.25)},
        weight_decay={"bias": 0.0, "kernel": 0.1, "stack": lambda count: 0.1, "wte": 0.1},
        mask=lambda params: {"bias": True, "kernel": True, "stack": True, "wte": False},
    )
    assert column("learning_rate", optimizer) == {"bias": "0.5", "kernel": "schedule", "stack": "0", "wte": "0.25"}
    assert column("weight_decay", optimizer) == {"bias": "none", "kernel": "0.1", "stack": "schedule", "wte": "none"}
    assert column("learning_rate", adam(None))["bias"] == "not given"
    assert column("learning_rate", schedule_free_adamw(0.5))["bias"] == "0.5"
    assert column("learning_rate", prodigy(optax.constant_schedule(1.0)))["bias"] == "schedule"
    assert column("learning_rate", optax.inject_hyperparams(adam)(0.1))["bias"] == "array"


@pytest.mark.parametrize("factories", [(jaxopt_adam.adam, sgd), (optax.adam, optax.sgd)], ids=["ours", "theirs"])
def test_partitions_and_masks(factories):
    one, other = factories
    partition = optax.partition(
        {"first": one(0.1), "second": other(0.1, momentum=0.9), "frozen": optax.set_to_zero()},
        {"bias": "second", "kernel": "first", "stack": "frozen", "wte": "first"},
    )
    rule = {name: each.replace("scale_by_", "") for name, each in column("rule", partition).items()}
    assert rule["kernel"] == rule["wte"] == "first: adam"
    assert rule["bias"] == ("second: sgd" if other is sgd else "second: trace")
    assert rule["stack"] == "frozen: none"
    masked = optax.masked(one(0.1), {"bias": False, "kernel": True, "stack": False, "wte": True})
    assert column("rule", masked)["stack"] == "none"
    assert column("moments", masked)["stack"] == {}
    assert column("moments", masked)["wte"] == {"mu": "float32", "nu": "float32"}


def test_a_part_of_the_tree_that_is_masked_as_one():
    params = {"a": {"b": PARAMS["wte"], "c": PARAMS["bias"]}, "d": PARAMS["wte"]}
    for inner in (adam(0.1), optax.adam(0.1)):
        table = describe(optax.masked(inner, {"a": False, "d": True}), params)
        assert [leaf.rule.removeprefix("scale_by_") for leaf in table.leaves] == ["none", "none", "adam"]


@pytest.mark.parametrize("factory", [adam, optax.adam], ids=["ours", "theirs"])
def test_trees_of_other_kinds(factory):
    w = PARAMS["wte"]
    (pair, other) = describe(optax.chain(optax.clip(1.0), factory(0.1)), (w, w)).leaves
    assert pair[1:] == other[1:]
    assert pair.moments == {"mu": "float32", "nu": "float32"}
    (only,) = describe(factory(0.1), w).leaves
    assert only.moments == pair.moments
    (scalar,) = describe(factory(0.1), 0.0).leaves
    assert scalar.moments == pair.moments
    linear = equinox.filter(equinox.nn.MLP(2, 2, 8, 1, key=jax.random.key(0)), equinox.is_inexact_array)
    table = describe(factory(0.1), linear)
    assert next(leaf.path for leaf in table.leaves) == ".layers[0].weight"
    assert all(leaf.moments == pair.moments for leaf in table.leaves)
    assert describe(factory(0.1), {}).leaves == ()


def test_it_is_a_table_with_a_line_for_each_leaf():
    params = {f"layer{i}": {"kernel": PARAMS["wte"], "bias": PARAMS["bias"]} for i in range(150)}
    table = describe(adamw(1e-3), params)
    lines = str(table).splitlines()
    assert len(lines) == 303
    assert lines[0] == "adamw(learning_rate=0.001)"
    places = [lines[1].index(head) for head in ("shape", "dtype", "rule", "moments")]
    assert all(line[place - 1] == " " != line[place] for line in lines[2:-1] for place in places)
    assert len({len(line) for line in lines[1:-1]}) == 1
    assert lines[-1] == ("300 leaves, 1,231,200 elements: 4,920,000 bytes of parameters, 9,849,604 bytes of state")
    assert repr(table) == str(table)


def test_what_is_no_optimizer():
    with pytest.raises(TypeError, match="optimizer must be an optimizer"):
        describe(jaxopt_adam.adam, PARAMS)


def test_errors_of_the_optimizer_are_its_own():
    with pytest.raises(TypeError, match=r"\['w'\] must have a floating-point dtype"):
        describe(adam(0.1), {"w": jnp.zeros(3, jnp.int32)})
