"""Optimizers and schedules as plain dictionaries, and back: the same, or an error that names the place."""

import copy
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from public import RULES
from test_schedules import TABLE

import jaxopt_adam
from jaxopt_adam import (
    adafactor,
    adam,
    adamw,
    cautious,
    chain,
    checked,
    from_config,
    grid,
    lifted,
    masked,
    master_weights,
    named_chain,
    observe,
    optimizer,
    partition,
    schedules,
    sgd,
    stochastic_rounding,
    to_config,
)
from jaxopt_adam.schedules import linear_schedule, schedule, warmup_cosine_decay_schedule
from jaxopt_adam.storage import Blockwise

RECIPE = chain(
    lifted.clip_by_global_norm(1.0),
    adamw(warmup_cosine_decay_schedule(0.0, 1e-3, 10, 100), weight_decay=0.1, mask={"w": True, "b": False}),
)


@optimizer
def own_rule(rate, limit=1.0):
    return chain(lifted.clip(limit), sgd(rate))


@schedule
def own_schedule(start, steps=10):
    return lambda count: start / (1 + count / steps)


def no_bias(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


KNOWN = {"own_rule": own_rule, "own_schedule": own_schedule, "no_bias": no_bias}
MADE = {
    **{name: rule() if name in ("prodigy", "schedule_free_adamw") else rule(0.25) for name, rule in RULES.items()},
    **{name: getattr(schedules, factory)(**arguments) for name, (factory, arguments) in TABLE.items()},
    "recipe": RECIPE,
    "named": named_chain(("limit", lifted.clip(1.0)), ("rule", RECIPE)),
    "partition": partition({"body": RECIPE, "head": sgd(0.1)}, {"w": "body", "b": "head"}),
    "masked": masked(adam(0.1), {"w": True, "b": False}),
    "observe": observe(master_weights(cautious(adam(0.1)), bits=32), every=5),
    "checked": checked(stochastic_rounding(adam(0.1))),
    "storage": adam(0.1, moments=Blockwise(8, rounding="nearest")),
    "storages": adam(0.1, moments={"mu": "int8", "nu": Blockwise(4)}),
    "dtype": adam(0.1, mu_dtype=jnp.bfloat16),
    "arrays": adam(jnp.float32(0.1), b1=np.float32(0.5)),
    "rows": grid(adam, learning_rate=[0.1, 0.2])[0],
    "rates": adam({"linear_schedule": {"w": 0.1}, "b": linear_schedule(0.1, 0.0, 10)}),
    "odd tree": adam({"linear_schedule": {"w": 0.1}}),
    "tuples": adam((0.1, [0.2, {"dict": 0.3}])),
    "own": own_rule(own_schedule(0.1), limit=2.0),
    "mask": adamw(0.1, mask=no_bias),
    "infinite": lifted.clip_by_global_norm(float("inf")),
}


@pytest.mark.parametrize("name", MADE)
def test_there_and_back(name):
    """Through JSON, the same object, which does not share anything with the dictionary."""
    config = to_config(MADE[name], KNOWN)
    text = json.dumps(config)
    assert from_config(json.loads(text), KNOWN) == MADE[name] == from_config(copy.deepcopy(config), KNOWN)
    assert json.dumps(config) == text


def test_reads_well():
    assert to_config(RECIPE) == {
        "chain": [
            {"clip_by_global_norm": {"max_norm": 1.0}},
            {
                "adamw": {
                    "learning_rate": {
                        "warmup_cosine_decay_schedule": {
                            "init_value": 0.0,
                            "peak_value": 0.001,
                            "warmup_steps": 10.0,
                            "decay_steps": 100.0,
                            "end_value": 0.0,
                            "exponent": 1.0,
                        }
                    },
                    "b1": 0.9,
                    "b2": 0.999,
                    "eps": 1e-08,
                    "eps_root": 0.0,
                    "mu_dtype": None,
                    "weight_decay": 0.1,
                    "mask": {"w": True, "b": False},
                    "nesterov": False,
                    "moments": "float32",
                }
            },
        ]
    }
    stairs = schedules.piecewise_constant_schedule(1.0, {10: 0.5})
    assert to_config(stairs)["piecewise_constant_schedule"]["boundaries_and_scales"] == [[10.0, 0.5]]


def test_defaults_may_be_missing():
    assert from_config({"adam": {"learning_rate": 0.1}}) == adam(0.1)
    assert from_config({"chain": [{"sgd": {"learning_rate": 1}}]}) == chain(sgd(1.0))


NUMBERS = st.floats(0.0, 0.875, width=32)
SCHEDULES = st.recursive(
    st.builds(linear_schedule, NUMBERS, NUMBERS, st.integers(0, 100)),
    lambda inner: st.builds(lambda one, other, at: schedules.join_schedules([one, other], [at]), inner, inner, NUMBERS),
    max_leaves=4,
)
RATES = st.one_of(NUMBERS, SCHEDULES, st.dictionaries(st.sampled_from("wb"), st.one_of(NUMBERS, SCHEDULES), min_size=1))
LEAVES = st.one_of(
    st.builds(adam, RATES, b1=NUMBERS, moments=st.sampled_from(["float32", "int8", "bfloat16"])),
    st.builds(sgd, RATES, momentum=st.one_of(st.none(), NUMBERS)),
    st.builds(lifted.clip, NUMBERS),
)
OPTIMIZERS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: chain(*parts)),
        st.dictionaries(st.text(max_size=3), inner, min_size=1, max_size=3).map(
            lambda parts: named_chain(*parts.items())
        ),
        st.builds(lambda part, mask: masked(part, {"w": mask}), inner, st.booleans()),
        st.builds(lambda part: partition({"all": part}, "all"), inner),
        st.builds(master_weights, inner),
    ),
    max_leaves=6,
)


@given(OPTIMIZERS)
def test_nested(made):
    assert from_config(json.loads(json.dumps(to_config(made)))) == made


GOOD = to_config(
    chain(lifted.clip(1.0), observe(adamw(linear_schedule(0.1, 0.0, 10))), partition({"a": sgd(0.1)}, "a"))
)
PLACES = {
    "chain[0].clip": ("chain", 0, "clip"),
    "chain[1].observe": ("chain", 1, "observe"),
    "chain[1].observe.inner.adamw": ("chain", 1, "observe", "inner", "adamw"),
    "chain[1].observe.inner.adamw.learning_rate.linear_schedule": (
        *("chain", 1, "observe", "inner", "adamw"),
        *("learning_rate", "linear_schedule"),
    ),
    "chain[2].partition": ("chain", 2, "partition"),
    "chain[2].partition.transforms['a'].sgd": ("chain", 2, "partition", "transforms", "a", "sgd"),
}
NUMBER = {
    "chain[0].clip": "max_delta",
    "chain[1].observe": "every",
    "chain[1].observe.inner.adamw": "b1",
    "chain[1].observe.inner.adamw.learning_rate.linear_schedule": "init_value",
    "chain[2].partition": "mask_compatible_extra_args",
    "chain[2].partition.transforms['a'].sgd": "learning_rate",
}


def changed(path, change):
    config = copy.deepcopy(GOOD)
    node = config
    for key in path[:-1]:
        node = node[key]
    change(node, path[-1])
    return config


def rename(node, key):
    node[key + "x"] = node.pop(key)


def assign(value):
    return lambda node, key: node.__setitem__(key, value)


def argument(name, value):
    return lambda node, key: node[key].__setitem__(name, value)


BROKEN = {
    "unknown name": lambda place: rename,
    "no arguments": lambda place: assign({}) if NUMBER[place] != "every" else assign(3),
    "a number in place of arguments": lambda place: assign(3),
    "a string in place of arguments": lambda place: assign("x"),
    "a list in place of arguments": lambda place: assign([1.0]),
    "nothing in place of arguments": lambda place: assign(None),
    "unknown argument": lambda place: argument("lr", 0.1),
    "a string": lambda place: argument(NUMBER[place], "x"),
    "a list": lambda place: argument(NUMBER[place], ["x"]),
    "an object": lambda place: argument(NUMBER[place], object()),
    "a set": lambda place: argument(NUMBER[place], {1.0}),
    "NaN": lambda place: argument(NUMBER[place], float("nan")),
    "an unknown function": lambda place: argument(NUMBER[place], {"function": "eval"}),
    "a bad array": lambda place: argument(NUMBER[place], {"array": [[1], [1, 2]], "dtype": "float32"}),
    "a bad dtype": lambda place: argument(NUMBER[place], {"array": 1, "dtype": "float33"}),
    "a bad tuple": lambda place: argument(NUMBER[place], {"tuple": 3}),
    "two factories": lambda place: lambda node, key: node.update(sgd={"learning_rate": 0.1}),
}
# Trees of numbers and words in place of a learning rate are allowed, since a model may have such names.
ALLOWED = {
    (place, what)
    for place in PLACES
    for what in ("unknown name", "two factories")
    if "linear" in place or place.endswith("sgd")
}


@pytest.mark.parametrize(("place", "what"), [pair for pair in itertools.product(PLACES, BROKEN) if pair not in ALLOWED])
def test_broken(place, what):
    """An error with the place, and nothing evaluated."""
    config = changed(PLACES[place], BROKEN[what](place))
    with pytest.raises((TypeError, ValueError)) as caught:
        from_config(config)
    message = str(caught.value)
    assert message.startswith("from_config: ")
    within = place.rpartition(".")[0] if what in ("unknown name", "two factories") else place
    assert within.rpartition("['")[0] in message, message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"adamm": {}}, "'adamm' is no factory; near to it are adam"),
        ({"own_rule": {}}, r"'own_rule' is no factory; .*own must be given by name, known={'own_rule': own_rule}$"),
        ({}, r"config must have one key, the name of a factory, got \[\]"),
        ({"adam": {}, "sgd": {}}, r"one key, the name of a factory, got \['adam', 'sgd'\]"),
        (3, "config must be a dictionary of one factory and its arguments, got 3"),
        ([{"adam": {"learning_rate": 0.1}}], "config must be a dictionary of one factory"),
        ({"eval": {"source": "1"}}, "'eval' is no factory"),
        ({"adam": {"learning_rate": 0.1, "b1": 2.0}}, r"^from_config: adam: b1 must be in \[0, 1\), got 2.0"),
        ({"chain": [{"adam": {}}]}, r"^from_config: chain\[0\].adam: missing a required argument: 'learning_rate'"),
        ({"adamw": {"learning_rate": 0.1, "mask": {"function": "mine"}}}, "function 'mine', .* known={'mine': mine}$"),
        ({"adam": 0.1}, "adam must have a dictionary of arguments, got 0.1"),
        ({"chain": {}}, "chain must have a list of parts, got {}"),
        ({"named_chain": [["a", 3]]}, r"named_chain\[0\] must be a dictionary of one factory"),
        ({"Blockwise": {"bits": 8}}, "config must be a dictionary of one factory"),
    ],
)
def test_errors(config, message):
    with pytest.raises((TypeError, ValueError), match=message):
        from_config(config)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "value must be an optimizer or a schedule, got 3"),
        (
            adamw(0.1, mask=no_bias),
            "adamw.mask is a function that is not .* known ones, .* known={'no_bias': no_bias}$",
        ),
        (chain(adam(lambda count: 0.1)), r"chain\[0\].adam.learning_rate is a function.*: the function}$"),
        (own_rule(0.1), "by own_rule, which is not among the known factories; .* known={'own_rule': own_rule}$"),
        (partition({1: sgd(0.1)}, 1), r"partition.transforms must have strings as keys, got \[1\]"),
        (adafactor(0.1, weight_decay_mask=no_bias), "weight_decay_mask is a function"),
        (jnp.ones((3, 4)), r"value must be .*, got an array of shape \(3, 4\) and dtype float32 \(ArrayImpl\)$"),
        (
            optax.chain(optax.clip(1.0), adam(0.1)),
            "^to_config: value is .* no jaxopt_adam.Optimizer, .*use jaxopt_adam.chain in place of optax.chain",
        ),
        (chain(optax.clip(1.0), adam(0.1)), r"^to_config: chain\[0\] is .*; use jaxopt_adam.lifted.clip$"),
        (
            optax.MultiSteps(adam(0.1), 2).gradient_transformation(),
            "^to_config: value is .*; use jaxopt_adam.lifted.MultiSteps$",
        ),
        (
            masked(optax.GradientTransformation(lambda params: (), lambda *given: given), True),
            r"^to_config: masked.inner is .*; make it with .*jaxopt_adam.lifted; .* known={'name': the function}$",
        ),
        (
            adam(optax.cosine_onecycle_schedule(10, 0.1)),
            "^to_config: adam.learning_rate .*; use jaxopt_adam.schedules.piecewise_interpolate_schedule, .* known=",
        ),
        (adam({"w": optax.constant_schedule(0.1)}), "; use jaxopt_adam.schedules.constant_schedule, which is data"),
    ],
)
def test_cannot_be_said(value, message):
    with pytest.raises(TypeError, match=message):
        to_config(value)


def test_traced():
    with pytest.raises(TypeError, match=r"adam.b1 is traced"):
        jax.jit(lambda b1: to_config(adam(0.1, b1=b1)))(0.5)


def test_every_factory_is_known():
    """By its own name, or a name that means one thing."""
    names = [
        name
        for module in (lifted, schedules, jaxopt_adam)
        for name, each in vars(module).items()
        if hasattr(each, "__wrapped__")
    ]
    assert len(names) == len(set(names)) > 100
