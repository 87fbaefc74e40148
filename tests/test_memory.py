"""Bytes of states: `nbytes`, the calculator, and its command."""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from public import RULES

from jaxopt_adam import adamw, master_weights, nbytes, state_shardings, stochastic_rounding
from jaxopt_adam.lab import memory
from jaxopt_adam.lab.cli import main
from jaxopt_adam.storage import Blockwise

pytestmark = pytest.mark.lab

# nbytes.


def test_the_bytes_of_arrays_of_every_kind():
    tree = {
        "float32": jnp.zeros([3, 5]),  # 60
        "bfloat16": jnp.zeros([7], jnp.bfloat16),  # 14
        "complex": jnp.zeros([2], jnp.complex64),  # 16
        "bytes": (jnp.zeros([11], jnp.uint8), jnp.zeros([3], jnp.bool_)),  # 14
        "empty": jnp.zeros([0, 4]),
        "numpy": [np.zeros([2, 2]), np.float64(1), np.zeros([3], jnp.bfloat16)],  # 32, 8, 6
        "struct": jax.ShapeDtypeStruct((10**6, 10**6), jnp.int8),  # 10¹², which nobody could allocate
        "numbers": (True, 1, 1.0, 1j),  # 1, 4, 4, 8
        "keys": (jax.random.key(0), jax.random.split(jax.random.key(0), 3)),  # 8, 24
        "raw key": jax.random.PRNGKey(0),  # 8
        "nothing": (None, optax.MaskedNode(), ()),
        "float0": np.zeros([3], jax.dtypes.float0),
    }
    assert nbytes(tree) == 60 + 14 + 16 + 14 + 32 + 8 + 6 + 10**12 + 1 + 4 + 4 + 8 + 8 + 24 + 8
    assert type(nbytes(tree)) is type(nbytes(None)) is int
    assert nbytes(jnp.zeros([3, 5])) == 60
    assert nbytes([]) == 0


@pytest.mark.parametrize("name", RULES)
def test_every_array_of_a_new_state_can_be_donated(name):
    """Of parameters that are alike, scalars among them, and of the parameters themselves."""
    params = {key: jnp.ones(shape) for key, shape in {"a": (), "b": (), "c": (8, 8), "d": (8, 8), "e": (3,)}.items()}
    given = inspect.signature(RULES[name]).parameters
    options = {"moments": "bfloat16"} if "moments" in given else {}
    initial = {"initial_accumulator_value": jnp.ones(()), "initial_scale": jnp.ones(())}
    numbers = {key: value for key, value in initial.items() if key in given}
    for each in ({}, options, numbers):
        state = RULES[name](learning_rate=0.1, **each).init(params)
        buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, state))]
        assert len(set(buffers)) == len(buffers)


def test_keys_that_are_yet_to_be_made_count_too():
    assert nbytes(jax.eval_shape(lambda: jax.random.key(0))) == 8
    assert nbytes(jax.eval_shape(lambda: jax.random.split(jax.random.key(0, impl="rbg"), 5))) == 80


def test_numbers_count_as_the_arrays_that_they_become():
    with jax.enable_x64(True):
        assert nbytes((True, 1, 1.0, 1j)) == 1 + 8 + 8 + 16
        assert nbytes(jnp.zeros(3)) == 24
    assert nbytes(adamw(1e-3)) == 4 * len(jax.tree.leaves(adamw(1e-3)))


def test_the_bytes_of_traced_arrays_are_known():
    sizes = []
    jax.jit(lambda x: sizes.append(nbytes({"x": x, "y": x[0]})))(jnp.zeros([3, 5]))
    assert sizes == [60 + 20]


@pytest.mark.parametrize(
    "wrong", ["float32", np.float32, jnp.float32, object(), np.array(["a"]), np.array([None]), np.datetime64("2000")]
)
def test_what_is_no_array_is_named(wrong):
    with pytest.raises(TypeError, match=r"leaf \['a'\]\[1\] must be an array .* got .*" + type(wrong).__name__):
        nbytes({"a": [jnp.zeros(3), wrong]})
    with pytest.raises(TypeError, match="the only leaf must be an array"):
        nbytes(wrong)


def test_the_bytes_of_a_state_are_those_that_it_takes():
    params = {"matrix": jnp.zeros([256, 1024], jnp.bfloat16), "bias": jnp.zeros([256], jnp.bfloat16)}
    state = master_weights(adamw(1e-3, moments=Blockwise(8, block_size=128))).init(params)
    # Two codes of a byte, two scales of 2 bytes for 128 of them; small leaves in float32; 8 bits more; two counts.
    by_hand = 256 * 1024 * (2 + 2 * 2 / 128) + 256 * 2 * 4 + 256 * 1025 + 2 * 4
    assert nbytes(state) == nbytes(jax.eval_shape(lambda: state)) == by_hand
    assert nbytes(state) == sum(leaf.nbytes for leaf in jax.tree.leaves(state))


# The calculator.

CODES = 1 + 2 / 128  # bytes of a code of 8 bits and of its share of a scale


@pytest.mark.parametrize(
    ("words", "by_hand"),
    [
        (("adamw",), {"weights": 4, "gradients": 4, "mu": 4, "nu": 4}),
        (("adamw", "bfloat16", "bf16"), {"weights": 2, "gradients": 2, "mu": 2, "nu": 2}),
        (("adamw", "int8", "bf16+8"), {"weights": 2, "gradients": 2, "mu": CODES, "nu": CODES, "correction": 1}),
        (("adam", "int4"), {"weights": 4, "gradients": 4, "mu": 0.5 + 2 / 64, "nu": 0.5 + 2 / 64}),
        (("lion", "float32", "bf16+16", "float32"), {"weights": 2, "gradients": 4, "mu": 4, "correction": 2}),
        (("sgd", "float32", "bf16+stochastic"), {"weights": 2, "gradients": 2}),
        (("adafactor",), {"weights": 4, "gradients": 4, "v_row": 4 / 4096, "v_col": 4 / 4096}),
        (("soap",), {"weights": 4, "gradients": 4, "mu": 4, "nu": 4, "factors": 8, "bases": 8}),
    ],
)  # fmt: skip
def test_the_parts_are_those_that_one_reckons_by_hand(words, by_hand):
    assert memory.measure(*words) == by_hand


@pytest.mark.parametrize("weights", memory.WEIGHTS)
@pytest.mark.parametrize("moments", ["int8", "int4"])
def test_the_calculators_figures_are_a_real_states(weights, moments):
    """Against arrays that are there, for a matrix so small as to be made, and as large as to be measured like."""
    shape, wrappers = (1024, 1024), {"+8": 24, "+16": 32}
    dtype = jnp.float32 if weights == "float32" else jnp.bfloat16
    params = jnp.zeros(shape, dtype)
    within = adamw(1e-3, moments=moments)
    suffix = weights.removeprefix("bf16")
    if suffix in wrappers:
        within = master_weights(within, bits=wrappers[suffix])
    elif suffix == "+stochastic":
        within = stochastic_rounding(within)
    arrays = jax.tree.leaves((params, jax.grad(lambda x: x.sum())(params), within.init(params)))
    real = sum(leaf.nbytes for leaf in arrays if leaf.size > 2) / params.size
    assert sum(memory.measure("adamw", moments, weights).values()) == real


@pytest.mark.parametrize("rule", memory.RULES)
def test_every_rule_is_measured(rule):
    parts = memory.measure(rule)
    assert parts["weights"] == parts["gradients"] == 4
    takes = "moments" in inspect.signature(RULES[rule]).parameters
    if takes and rule != "sgd":  # which has no momentum with its usual arguments
        assert memory.storages(rule) == memory.MOMENTS
        totals = [sum(memory.measure(rule, moments).values()) for moments in memory.MOMENTS]
        assert totals == sorted(totals, reverse=True)
        assert len(set(totals)) == 4
    else:
        assert memory.storages(rule) == ("float32",)
        with pytest.raises(ValueError, match=f"expected float32 for {rule}, .* got int4"):
            memory.measure(rule, "int4")


@pytest.mark.parametrize(
    ("words", "cut", "by_hand"),
    [
        (("adamw",), "none", {"weights": 4, "gradients": 4, "mu": 4, "nu": 4}),
        (("adamw",), "data", {"weights": 4, "gradients": 4, "mu": 4 / 64, "nu": 4 / 64}),
        (("adamw",), "fsdp", {"weights": 4 / 64, "gradients": 4 / 64, "mu": 4 / 64, "nu": 4 / 64}),
        (("adamw", "int8", "bf16+8"), "data",
         {"weights": 2, "gradients": 2, "mu": CODES / 64, "nu": CODES / 64, "correction": 1 / 64}),
        (("adamw", "bfloat16"), "fsdp", {"weights": 4 / 64, "gradients": 4 / 64, "mu": 2 / 64, "nu": 2 / 64}),
        # Of the means along one axis of a matrix that is divided along the other, each device has all.
        (("adafactor",), "fsdp",
         {"weights": 4 / 64, "gradients": 4 / 64, "v_row": 4 / 4096 / 64, "v_col": 4 / 4096}),
        (("sgd",), "data", {"weights": 4, "gradients": 4}),
    ],
)  # fmt: skip
def test_the_parts_on_each_of_64_devices_are_those_that_one_reckons_by_hand(words, cut, by_hand):
    assert memory.measure(*words, devices=64, cut=cut) == by_hand


@pytest.mark.parametrize("weights", memory.WEIGHTS)
@pytest.mark.parametrize(("devices", "cut"), [(1, "none"), (64, "none"), (64, "data"), (64, "fsdp")])
def test_accumulation_adds_a_mean_gradient_in_float32_and_nothing_else(weights, devices, cut):
    measure = functools.partial(memory.measure, "adamw", "int8", weights, devices=devices, cut=cut)
    expected = measure() | {"acc_grads": 4 if cut == "none" else 4 / 64}
    assert measure(accumulate=4) == measure(accumulate=2) == expected
    assert measure(accumulate=1) == measure()


@pytest.mark.parametrize("devices", [3, 48, 1000, memory.MOST_DEVICES])
@pytest.mark.parametrize("moments", ["float32", "int8"])
def test_any_number_of_devices_divides_the_state(devices, moments):
    whole = memory.measure("adamw", moments, devices=devices)
    assert memory.matrix(devices)[0] % devices == 0
    assert memory.measure("adamw", moments, devices=devices, cut="data") == {
        name: pytest.approx(size if name in ("weights", "gradients") else size / devices)
        for name, size in whole.items()
    }
    assert memory.measure("adamw", moments, devices=devices, cut="fsdp") == {
        name: pytest.approx(size / devices) for name, size in whole.items()
    }


@pytest.mark.parametrize("cut", ["data", "fsdp"])
def test_the_calculators_figures_on_each_device_are_a_real_states(cut, monkeypatch):
    monkeypatch.setattr(memory, "MATRIX", (256, 256))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data" if cut == "fsdp" else None))
    optimizer = adamw(1e-3, moments="int8")
    params = jax.device_put(jnp.ones((256, 256)), where)
    places = state_shardings(optimizer, params, cut="data" if cut == "data" else None)
    state = jax.jit(optimizer.init, out_shardings=places)(params)
    on_first = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves((params, params, state))]
    parts = memory.measure("adamw", "int8", devices=8, cut=cut)
    assert sum(parts.values()) * params.size == sum(on_first) - 4  # but for the count


def test_all_rules_are_there():
    assert set(memory.RULES) == set(RULES)


# The command.


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["memory", *arguments])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def cells(stdout: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in stdout.splitlines() if line.startswith("│")]
    return {row[0]: row[1:] for row in rows}


def test_the_command_says_how_much_and_how_many(capsys):
    words = "--params 8e9 --optimizer adamw --moments int8 --weights bf16+8 --gradients bfloat16"
    code, stdout, stderr = run(capsys, *words.split())
    assert (code, stderr) == (0, "")
    assert cells(stdout) == {
        "weights": ["2.000", "16.00"],
        "gradients": ["2.000", "16.00"],
        "mu": ["1.016", "8.12"],
        "nu": ["1.016", "8.12"],
        "correction": ["1.000", "8.00"],
        "the whole state": ["3.031", "24.25"],
        "in all": ["7.031", "56.25"],
        "16 GB": ["2.27"],
        "24 GB": ["3.41"],
        "80 GB": ["11.37"],
        "141 GB": ["20.05"],
    }
    assert "GB for 8,000,000,000 parameters" in stdout
    assert "bytes a parameter" in stdout
    assert "activations are not" in stdout


def test_the_command_counts_the_mean_gradient_of_several_batches(capsys):
    code, stdout, stderr = run(capsys, "--accumulate", "4", "--devices", "64", "--cut", "fsdp")
    assert (code, stderr) == (0, "")
    table = cells(stdout)
    assert table["acc_grads"] == ["4.000", "4.00", "0.0625"]
    assert table["in all"] == ["20.000", "20.00", "0.312"]
    said = "An update is made of 4 batches; acc_grads is their mean gradient, in float32."
    assert said in stdout
    _, stdout, _ = run(capsys, "--accumulate", "1")
    assert "acc_grads" not in stdout


def test_usual_words_are_adamw_in_float32(capsys):
    code, stdout, stderr = run(capsys)
    assert (code, stderr) == (0, "")
    table = cells(stdout)
    assert table["in all"] == ["16.000", "16.00"]
    assert table["16 GB"] == ["1.00"]


def test_the_command_says_how_much_on_each_device(capsys):
    code, stdout, stderr = run(capsys, "--devices", "64", "--cut", "data")
    assert (code, stderr) == (0, "")
    assert cells(stdout) == {
        "weights": ["4.000", "4.00", "4.00"],
        "gradients": ["4.000", "4.00", "4.00"],
        "mu": ["4.000", "4.00", "0.0625"],
        "nu": ["4.000", "4.00", "0.0625"],
        "the whole state": ["8.000", "8.00", "0.125"],
        "in all": ["16.000", "16.00", "8.12"],
        "16 GB": ["1.96"],
        "24 GB": ["2.95"],
        "80 GB": ["9.84"],
        "141 GB": ["17.35"],
    }
    assert "GB on each: data" in stdout
    assert "on each of 64 devices, weights and gradients whole, the state divided (ZeRO-1)" in stdout


def test_all_ways_to_divide_are_columns_by_default(capsys):
    code, stdout, stderr = run(capsys, "--devices", "1000", "--params", "70B")
    assert (code, stderr) == (0, "")
    table = cells(stdout)
    assert table["in all"] == ["16.000", "1,120.00", "1,120.00", "560.56", "1.12"]
    assert table["80 GB"] == ["5.00", "9.99", "5,000.00"]
    assert "a matrix of 5,000 × 5,000" in stdout


def test_amounts_below_a_gigabyte_are_not_lost(capsys):
    assert cells(run(capsys, "--params", "1e5")[1])["mu"] == ["4.000", "0.0004"]


@pytest.mark.parametrize(
    ("text", "gigabytes"),
    [("7B", "28.00"), ("7e9", "28.00"), ("7b", "28.00"), ("350M", "1.40"), ("1.5B", "6.00"), ("250000K", "1.00"),
     ("0.25T", "1,000.00"), ("1_000_000_000", "4.00")],
)  # fmt: skip
def test_numbers_of_parameters_as_people_write_them(text, gigabytes, capsys):
    code, stdout, stderr = run(capsys, "--params", text)
    assert (code, stderr) == (0, "")
    assert cells(stdout)["weights"] == ["4.000", gigabytes]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(
            (
                f"--params {wrong}",
                "'--params': expected a number from 1 to 1e+15, such as 7e9, or 350M or 7B with one of "
                f"the units k, M, B and T, got {wrong!r}",
            )
            for wrong in ("0", "-8e9", "nan", "inf", "1e16", "2000T", "0.0001k", "many", "B", "7BB", "7G", "")
        ),
        ("--optimizer adamww", "'adamww' is unknown (did you mean adamw?); known are adabelief, "),
        ("--moments int2", "'int2' is unknown (did you mean int8?); known are float32, bfloat16, int8, int4"),
        ("--weights bf16+9", "'bf16+9' is unknown (did you mean bf16+8?); known are float32, bf16, bf16+8, "),
        ("--gradients int8", "'int8' is unknown; known are float32, bfloat16, float16"),
        (
            "--optimizer soap --moments int8",
            "'--moments': expected float32 for soap, whose moments are stored in no other",
        ),
        ("--cut data", "'--cut': needs --devices, the number of devices"),
        ("--devices 64 --cut date", "'date' is unknown (did you mean data?); known are none, data, fsdp"),
        *(
            (f"--devices {wrong}", f"expected a whole number from 1 to 4,096, got '{wrong}'")
            for wrong in ("0", "-1", "4097")
        ),
        ("--devices many", "'--devices'"),
        ("--accumulate 0", "'--accumulate': expected a whole number from 1 to 1,000,000, got '0'"),
        ("--parameters 3", "--parameters"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(arguments, message, capsys):
    code, stdout, stderr = run(capsys, *arguments.split(" ", 1 if arguments.startswith("--params") else -1))
    assert (code, stdout) == (2, "")
    assert re.sub(r"\s+", " ", message) in stderr
    assert stderr.startswith("jaxopt-adam: ")
    assert stderr.count("\n") == 1


def test_help(capsys):
    code, stdout, stderr = run(capsys, "--help")
    assert (code, stderr) == (0, "")
    assert "how many parameters fit" in re.sub(r"\s+", " ", stdout)
