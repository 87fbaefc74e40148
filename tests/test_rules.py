import functools
import inspect
import itertools

import chex
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest
from agreement import deviation, falling, name_of, noisy_gradients, over, rising, scan_updates, start
from oracles import ORACLES, walk

import jaxopt_adam
from jaxopt_adam.rules.radam import _length

LAST_STEP = 2**31 - 1
STEPS = 400
"""Of the walks in float64: enough to pass all that changes after some steps, RAdam's threshold above all."""


# Graves's variance is a difference, and at the first step with bias correction it is that of one value: zero on paper,
# a rounding error of g² in floating point. A tiny ε in the root would divide by that error, so ε is large. Outside of
# the root even that would not do, since the root of the error is taken first; there the average starts far above zero.
CENTERED = {"centered": True, "bias_correction": True, "eps": 100.0}

# AdaBelief's (g − m)² is a difference too. Where it lies in an average with others that do not nearly vanish, its
# error is nothing against them. But for b1 = 0 it is g − g, zero on paper and maybe a rounding error of g (up to 1e-5
# in float32 for the g of about 100 here), and for b2 = 0 it stands alone and may be as near to zero as chance has it:
# there `eps_root` is far above the error's square, so that no quotient is one of errors.
BELIEVING = {"eps_root": 1.0}


def clip_at_two(count):
    return 2.0 + 0 * count


def slower(count):
    return 0.99 - 0.5 / (1 + count)


CASES = [
    ("sgd", {"learning_rate": 0.1}),
    ("sgd", {"learning_rate": falling}),
    ("sgd", {"learning_rate": None}),
    ("sgd", {"learning_rate": 0.1, "momentum": 0.0}),
    ("sgd", {"learning_rate": 0.1, "momentum": 0.9}),
    ("sgd", {"learning_rate": 0.01, "momentum": 0.99, "nesterov": True}),
    ("sgd", {"learning_rate": 0.1, "nesterov": True}),
    ("sgd", {"learning_rate": falling, "momentum": 0.9, "nesterov": True}),
    ("sgd", {"learning_rate": None, "momentum": 0.9, "nesterov": True}),
    ("adagrad", {"learning_rate": 0.1}),
    ("adagrad", {"learning_rate": falling}),
    ("adagrad", {"learning_rate": None}),
    ("adagrad", {"learning_rate": 0.1, "initial_accumulator_value": 0.0}),
    ("adagrad", {"learning_rate": 0.1, "initial_accumulator_value": 3.0}),
    ("adagrad", {"learning_rate": 0.1, "eps": 0.01}),
    ("adagrad", {"learning_rate": 0.1, "initial_accumulator_value": 0.0, "eps": 0.0}),
    ("adadelta", {}),
    ("adadelta", {"learning_rate": 1.0}),
    ("adadelta", {"learning_rate": falling}),
    ("adadelta", {"learning_rate": 1.0, "rho": 0.0}),
    ("adadelta", {"learning_rate": 1.0, "rho": 0.99}),
    ("adadelta", {"learning_rate": 1.0, "eps": 0.01}),
    ("adadelta", {"learning_rate": 1.0, "weight_decay": 0.1}),
    ("adadelta", {"learning_rate": 1.0, "weight_decay": rising}),
    ("rmsprop", {"learning_rate": 0.01}),
    ("rmsprop", {"learning_rate": falling}),
    ("rmsprop", {"learning_rate": None}),
    ("rmsprop", {"learning_rate": 0.01, "decay": 0.0}),
    ("rmsprop", {"learning_rate": 0.01, "decay": 0.99}),
    ("rmsprop", {"learning_rate": 0.01, "eps": 0.01}),
    ("rmsprop", {"learning_rate": 0.01, "eps_in_sqrt": False}),
    ("rmsprop", {"learning_rate": 0.01, "eps_in_sqrt": False, "eps": 0.01}),
    ("rmsprop", {"learning_rate": 0.01, "initial_scale": 1.0}),
    ("rmsprop", {"learning_rate": 0.01, "centered": True}),
    ("rmsprop", {"learning_rate": 0.01, "centered": True, "initial_scale": 1.0, "decay": 0.95, "eps": 1e-4}),
    ("rmsprop", {"learning_rate": 0.01, "centered": True, "eps_in_sqrt": False}),
    ("rmsprop", {"learning_rate": 0.01, "momentum": 0.9}),
    ("rmsprop", {"learning_rate": 0.01, "momentum": 0.9, "nesterov": True}),
    ("rmsprop", {"learning_rate": falling, "momentum": 0.9}),
    ("rmsprop", {"learning_rate": None, "momentum": 0.5, "nesterov": True}),
    ("rmsprop", {"learning_rate": 0.01, "bias_correction": True}),
    ("rmsprop", {"learning_rate": 0.01, "bias_correction": True, "decay": 0.999, "eps_in_sqrt": False}),
    ("rmsprop", {"learning_rate": 0.01, **CENTERED}),
    ("rmsprop", {"learning_rate": 0.01, **CENTERED, "momentum": 0.9, "nesterov": True}),
    ("rmsprop", {"learning_rate": 0.01, **CENTERED, "eps_in_sqrt": False, "initial_scale": 1e4}),
    ("adam", {"learning_rate": 0.01}),
    ("adam", {"learning_rate": falling}),
    ("adam", {"learning_rate": None}),
    ("adam", {"learning_rate": 0.01, "b1": 0.0}),
    ("adam", {"learning_rate": 0.01, "b1": 0.99}),
    ("adam", {"learning_rate": 0.01, "b2": 0.0, "eps": 0.01}),
    ("adam", {"learning_rate": 0.01, "b2": 0.95}),
    ("adam", {"learning_rate": 0.01, "b2": 0.99999}),
    ("adam", {"learning_rate": 0.01, "eps": 0.01}),
    ("adam", {"learning_rate": 0.01, "eps_root": 1e-3}),
    ("adam", {"learning_rate": 0.01, "nesterov": True}),
    ("adam", {"learning_rate": falling, "b1": 0.95, "b2": 0.98, "eps": 1e-4, "eps_root": 1e-6, "nesterov": True}),
    ("adam", {"learning_rate": None, "nesterov": True}),
    # A direction alone is added as it is, so a decay with it makes the parameters grow, and must be small.
    ("adamw", {"learning_rate": 0.01}),
    ("adamw", {"learning_rate": falling, "weight_decay": 0.1}),
    ("adamw", {"learning_rate": None, "weight_decay": 0.001, "eps": 0.01, "nesterov": True}),
    ("adamw", {"learning_rate": 0.01, "b1": 0.95, "b2": 0.98, "weight_decay": 0.0, "eps_root": 1e-3}),
    ("adamw", {"learning_rate": 0.01, "weight_decay": 0.1, "mask": False}),
    ("nadam", {"learning_rate": 0.01}),
    ("nadam", {"learning_rate": falling, "b1": 0.99, "b2": 0.95, "eps": 1e-4, "eps_root": 1e-6}),
    ("nadam", {"learning_rate": None, "nesterov": False}),
    ("nadamw", {"learning_rate": 0.01}),
    ("nadamw", {"learning_rate": None, "weight_decay": 0.001, "eps": 0.01}),
    ("nadamw", {"learning_rate": falling, "weight_decay": rising, "b1": 0.8, "b2": 0.9, "eps_root": 1e-3}),
    ("nadamw", {"learning_rate": 0.01, "weight_decay": 0.1, "mask": False, "nesterov": False}),
    ("adamax", {"learning_rate": 0.01}),
    ("adamax", {"learning_rate": None, "b1": 0.0, "eps": 0.01}),
    ("adamax", {"learning_rate": falling, "b1": 0.99, "b2": 0.9}),
    ("adamax", {"learning_rate": 0.01, "b2": 0.0, "eps": 1e-3}),
    ("adamaxw", {"learning_rate": 0.01}),
    ("adamaxw", {"learning_rate": None, "weight_decay": 0.001, "b2": 0.9}),
    ("adamaxw", {"learning_rate": falling, "weight_decay": rising, "b1": 0.5, "eps": 0.01}),
    ("adamaxw", {"learning_rate": 0.01, "weight_decay": 0.1, "mask": False}),
    ("amsgrad", {"learning_rate": 0.01}),
    ("amsgrad", {"learning_rate": None, "b1": 0.0, "b2": 0.9, "eps": 0.01}),
    ("amsgrad", {"learning_rate": falling, "b1": 0.99, "b2": 0.99999, "eps_root": 1e-3}),
    ("amsgrad", {"learning_rate": 0.01, "bias_correction_mu": False}),
    ("amsgrad", {"learning_rate": 0.01, "bias_correction_nu": False}),
    ("amsgrad", {"learning_rate": 0.01, "bias_correction_mu": False, "bias_correction_nu": False, "b2": 0.0}),
    ("radam", {"learning_rate": 0.01}),
    ("radam", {"learning_rate": None, "b2": 0.95, "eps": 0.01}),
    ("radam", {"learning_rate": falling, "b1": 0.0, "b2": 0.99, "eps_root": 1e-3}),
    ("radam", {"learning_rate": 0.01, "b2": 0.5}),  # ρ never comes near to the threshold
    ("radam", {"learning_rate": 0.01, "b1": 0.99, "b2": 0.0}),
    ("radam", {"learning_rate": 0.01, "b2": 0.99999}),  # its length is a difference of large numbers
    ("radam", {"learning_rate": 0.01, "threshold": 4.0}),
    ("radam", {"learning_rate": 0.01, "threshold": 100.5, "nesterov": True}),
    ("adabelief", {"learning_rate": 0.01}),
    ("adabelief", {"learning_rate": None, "b1": 0.5, "eps": 0.01}),
    ("adabelief", {"learning_rate": falling, "b1": 0.99, "b2": 0.95, "eps_root": 1e-6}),
    ("adabelief", {"learning_rate": 0.01, "nesterov": True}),
    ("adabelief", {"learning_rate": 0.01, "b1": 0.0, **BELIEVING}),
    ("adabelief", {"learning_rate": 0.01, "b2": 0.0, **BELIEVING}),
    ("yogi", {"learning_rate": 0.01}),
    ("yogi", {"learning_rate": None, "b1": 0.0, "eps": 1e-8}),
    ("yogi", {"learning_rate": falling, "b1": 0.99, "b2": 0.9}),
    ("lion", {"learning_rate": 0.01}),
    ("lion", {"learning_rate": None, "b1": 0.0, "weight_decay": 0.002}),
    ("lion", {"learning_rate": falling, "b1": 0.95, "b2": 0.98, "weight_decay": rising}),
    ("lion", {"learning_rate": 0.01, "b2": 0.0, "weight_decay": 0.0}),
    ("lion", {"learning_rate": 0.01, "weight_decay": 0.1, "mask": False}),
    ("adan", {"learning_rate": 0.01}),
    ("adan", {"learning_rate": None, "b1": 0.0, "b2": 0.5, "b3": 0.9, "eps": 0.01, "weight_decay": 0.001}),
    ("adan", {"learning_rate": falling, "b1": 0.9, "b2": 0.99, "eps_root": 1e-3, "weight_decay": rising}),
    ("adan", {"learning_rate": 0.01, "b2": 0.0, "b3": 0.999, "weight_decay": 0.1, "mask": False}),
    ("laprop", {"learning_rate": 0.01}),
    ("laprop", {"learning_rate": None, "b1": 0.0, "eps": 0.01, "weight_decay": 0.001}),
    ("laprop", {"learning_rate": falling, "b1": 0.99, "b2": 0.0, "weight_decay": rising}),
    ("laprop", {"learning_rate": 0.01, "b2": 0.95, "weight_decay": 0.1, "mask": False}),
    ("adam_atan2", {"learning_rate": 0.01}),
    ("adam_atan2", {"learning_rate": None, "b1": 0.0, "a": 1.0, "weight_decay": 0.001}),
    ("adam_atan2", {"learning_rate": falling, "b1": 0.99, "b2": 0.95, "b": 3.0, "weight_decay": rising}),
    ("adam_atan2", {"learning_rate": 0.01, "b": 0.0, "weight_decay": 0.1, "mask": False}),
    ("adopt", {"learning_rate": 0.01}),
    ("adopt", {"learning_rate": None, "b1": 0.0, "b2": 0.5, "nesterov": True}),
    ("adopt", {"learning_rate": falling, "b1": 0.99, "b2": 0.999, "eps": 0.01, "clip_value_fn": clip_at_two}),
    ("adopt", {"learning_rate": 0.01, "use_clipping": False, "eps": 1.0, "nesterov": True}),
    ("ademamix", {"learning_rate": 0.01}),
    ("ademamix", {"learning_rate": None, "b1": 0.0, "b3": 0.9, "alpha": 0.0, "eps": 0.01, "weight_decay": 0.001}),
    ("ademamix", {"learning_rate": falling, "b3": slower, "alpha": rising, "eps_root": 1e-3, "weight_decay": rising}),
    ("ademamix", {"learning_rate": 0.01, "b2": 0.95, "b3": 0.99999, "weight_decay": 0.1, "mask": False}),
]

# One of each rule with all the state that it can have.
FULL = [
    ("sgd", {"learning_rate": 0.1, "momentum": 0.9}),
    ("sgd", {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}),
    ("adagrad", {"learning_rate": 0.1}),
    ("adadelta", {"learning_rate": 1.0}),
    ("rmsprop", {"learning_rate": 0.01, "centered": True, "momentum": 0.9}),
    ("rmsprop", {"learning_rate": 0.01, **CENTERED, "momentum": 0.9, "nesterov": True}),
    ("adam", {"learning_rate": 0.01}),
    ("adam", {"learning_rate": 0.01, "nesterov": True}),
    ("adamw", {"learning_rate": 0.01, "weight_decay": 0.1}),
    ("nadam", {"learning_rate": 0.01}),
    ("nadamw", {"learning_rate": 0.01, "weight_decay": 0.1}),
    ("adamax", {"learning_rate": 0.01}),
    ("adamaxw", {"learning_rate": 0.01, "weight_decay": 0.1}),
    ("amsgrad", {"learning_rate": 0.01}),
    ("radam", {"learning_rate": 0.01}),
    ("adabelief", {"learning_rate": 0.01}),
    ("yogi", {"learning_rate": 0.01}),
    ("lion", {"learning_rate": 0.01}),
    ("adan", {"learning_rate": 0.01, "weight_decay": 0.1}),
    ("laprop", {"learning_rate": 0.01, "weight_decay": 0.1}),
    ("adam_atan2", {"learning_rate": 0.01, "weight_decay": 0.1}),
    ("adopt", {"learning_rate": 0.01}),
    ("ademamix", {"learning_rate": 0.01, "weight_decay": 0.1}),
]
BARE = [("sgd", {"learning_rate": 0.1}), ("rmsprop", {"learning_rate": 0.01})]
FIELDS = {
    "sgd": {"trace"},
    "adagrad": {"sum_of_squares"},
    "adadelta": {"e_g", "e_x"},
    "rmsprop": {"nu", "mu", "trace"},
    **{rule: {"mu", "nu"} for rule in ["adam", "adamw", "nadam", "nadamw", "adamax", "adamaxw"]},
    **{rule: {"mu", "nu"} for rule in ["radam", "adabelief", "yogi", "laprop", "adam_atan2"]},
    "amsgrad": {"mu", "nu", "nu_max"},
    "lion": {"mu"},
    "adan": {"m", "v", "n", "g"},
    "adopt": {"mu", "nu"},
    "ademamix": {"m1", "m2", "nu"},
}
REAL_FIELDS = {"sum_of_squares", "e_g", "e_x", "nu", "nu_max", "n"}
COMPLEX = [case for case in FULL + BARE if case[0] != "adam_atan2"]  # an arc tangent of real numbers
DECAYED = ["adamw", "nadamw", "adamaxw", "lion", "adan", "laprop", "adam_atan2", "ademamix"]

# Compiled with their numbers as constants, which only matters where a decay is near to one.
CONSTANT = [
    *FULL,
    *BARE,
    ("sgd", {"learning_rate": falling}),
    ("adam", {"learning_rate": 0.01, "b2": 0.99999}),
    ("adam", {"learning_rate": falling, "b1": 0.99, "b2": 0.95, "eps": 1e-4, "eps_root": 1e-6}),
    ("rmsprop", {"learning_rate": 0.01, "bias_correction": True, "decay": 0.999, "eps_in_sqrt": False}),
    ("amsgrad", {"learning_rate": 0.01, "b2": 0.99999}),
    ("radam", {"learning_rate": 0.01, "b2": 0.99999, "threshold": 4.5}),
    ("radam", {"learning_rate": 0.01, "b2": 0.9999}),  # the fifth step's ρ is 4.9996, and so below the threshold
    ("adan", {"learning_rate": 0.01, "b3": 0.99999}),
]

# What is stored in 16 bits is dithered, and the update is that of what is stored. So these are held against the rule
# without rounding.
NARROW_CASES = [
    ("sgd", {"learning_rate": 0.1, "momentum": 0.9, "accumulator_dtype": "float32"}),
    ("sgd", {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "accumulator_dtype": jnp.bfloat16}),
    ("sgd", {"learning_rate": 0.1, "momentum": 0.9, "accumulator_dtype": np.float16}),
    ("adam", {"learning_rate": 0.01, "mu_dtype": "float32"}),
    ("adam", {"learning_rate": 0.01, "mu_dtype": "bfloat16"}),
    ("adam", {"learning_rate": 0.01, "mu_dtype": jnp.float16, "nesterov": True}),
    ("adamw", {"learning_rate": 0.01, "mu_dtype": "bfloat16", "weight_decay": 0.1}),
    ("nadam", {"learning_rate": 0.01, "mu_dtype": jnp.bfloat16}),
    ("nadamw", {"learning_rate": 0.01, "mu_dtype": "float32"}),
    ("amsgrad", {"learning_rate": 0.01, "mu_dtype": "bfloat16"}),
    ("lion", {"learning_rate": 0.01, "mu_dtype": "bfloat16"}),
    ("adopt", {"learning_rate": 0.01, "mu_dtype": "bfloat16"}),
    ("ademamix", {"learning_rate": 0.01, "mu_dtype": jnp.float16, "weight_decay": 0.1}),
]


def make(rule, arguments):
    return getattr(jaxopt_adam, rule)(**arguments)


def is_in_optax(rule, arguments):
    # Optax weighs Adan's differences by 1 − b2, the paper and its authors' code by b2; and it takes the difference of
    # large numbers that RAdam's length is for b2 near to one.
    exceptions = {"adan": arguments.get("b2") != 0.5, "radam": arguments.get("b2") == 0.99999}
    return hasattr(optax, rule) and not exceptions.get(rule, False)


def make_optax(rule, arguments):
    if arguments.get("learning_rate", "default") is not None:
        return getattr(optax, rule)(**arguments)
    # Without a learning rate optax has a direction beside each alias, and momentum apart.
    if rule not in ("sgd", "adagrad", "rmsprop", "adam"):  # -(-1) times the direction is exact
        return getattr(optax, rule)(**{**arguments, "learning_rate": -1.0})
    arguments = {name: value for name, value in arguments.items() if name != "learning_rate"}
    momentum, nesterov = arguments.pop("momentum", None), arguments.pop("nesterov", False)
    if rule == "adam":
        return optax.scale_by_adam(**arguments, nesterov=nesterov)
    direction = {"sgd": optax.identity, "adagrad": optax.scale_by_rss, "rmsprop": optax.scale_by_rms}[rule](**arguments)
    return direction if momentum is None else optax.chain(direction, optax.trace(momentum, nesterov))


def grouped(cases, structure, numbers):
    """The cases of one structure together, and what is a number in each."""
    groups = {}
    for arguments in cases:
        groups.setdefault(structure(arguments), []).append(arguments)
    return [(group, [numbers(arguments) for arguments in group]) for group in groups.values()]


def grouped_by_optimizer(rule, cases):
    def made(arguments):
        return make(rule, arguments)

    return grouped(cases, lambda arguments: jax.tree.structure(made(arguments)), made)


def mapped(function, batch):
    """A loop over numbers of one structure, which is compiled once; to be called within jit."""
    if len(batch) == 1:
        return jax.tree.map(lambda leaf: leaf[None], function(batch[0]))
    return jax.lax.map(function, jax.tree.map(lambda *leaves: jnp.stack(leaves), *batch))


def each_of(groups, results):
    """Each case's arguments and its part of the results."""
    for (group, _), result in zip(groups, jax.device_get(results), strict=True):
        for index, arguments in enumerate(group):
            yield arguments, jax.tree.map(lambda leaf, index=index: leaf[index], result)


def cases_of(rule, cases):
    return [arguments for other, arguments in cases if other == rule]


class TestAgreement:
    """All that is compiled of a rule is one program for its cases: apart they would take several times as long."""

    @pytest.mark.parametrize("rule", ORACLES)
    @pytest.mark.usefixtures("x64")
    def test_float64_with_the_oracle_and_with_optax(self, rule):
        cases = cases_of(rule, CASES)
        ours = grouped_by_optimizer(rule, cases)
        theirs = grouped(
            [arguments for arguments in cases if is_in_optax(rule, arguments)],
            lambda arguments: tuple((name, type(value) is float or value) for name, value in arguments.items()),
            lambda arguments: {name: value for name, value in arguments.items() if type(value) is float},
        )

        @jax.jit
        def run(ours, theirs, params, gradients):
            updates = [mapped(lambda each: scan_updates(each, params, gradients), batch) for batch in ours]
            updates_of_optax = [
                mapped(lambda each, like=like: scan_updates(make_optax(rule, like | each), params, gradients)[0], batch)
                for like, batch in zip(likes, theirs, strict=True)
            ]
            return updates, updates_of_optax

        likes = [group[0] for group, _ in theirs]
        params, gradients = start(), noisy_gradients(STEPS)
        found, found_of_optax = run([each for _, each in ours], [each for _, each in theirs], params, gradients)
        of_optax = list(each_of(theirs, found_of_optax))
        seen = 0
        for arguments, (updates, state) in each_of(ours, found):
            right, right_state = walk(ORACLES[rule](**arguments), params, gradients)
            assert deviation(updates, right) <= 1e-12, arguments
            for name, value in state._asdict().items():
                if value is not None:
                    np.testing.assert_allclose(value, right_state[name], rtol=1e-9, err_msg=f"{arguments} {name}")
            for other, updates_of_optax in of_optax:
                if other == arguments:
                    assert deviation(updates, updates_of_optax) <= 1e-12, arguments
                    seen += 1
        assert seen == sum(is_in_optax(rule, arguments) for arguments in cases)

    def test_adan_weighs_the_differences_as_its_paper_does(self):
        optimizer, param = jaxopt_adam.adan(1.0, eps_root=0.0), jnp.float32(0)
        _, state = optimizer.update(jnp.float32(1), optimizer.init(param))
        update, _ = optimizer.update(jnp.float32(3), state)
        m, v, n = 0.98 * 0.02 * 1 + 0.02 * 3, 0.08 * 2, 0.99 * 0.01 * 1 + 0.01 * (3 + 0.92 * 2) ** 2
        ahead = m / (1 - 0.98**2) + 0.92 * v / (1 - 0.92**2)
        np.testing.assert_allclose(update, -ahead / np.sqrt(n / (1 - 0.99**2)), rtol=1e-6)
        np.testing.assert_allclose(update, -0.8475, rtol=1e-4)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    @pytest.mark.usefixtures("x64")
    def test_float64_that_is_stored_in_less(self, dtype):
        params, gradients = start(), noisy_gradients(1000)
        cases = [
            (rule, name, arguments)
            for rule, arguments in NARROW_CASES
            for name in arguments.keys() & {"accumulator_dtype", "mu_dtype"}
            if jnp.dtype(arguments[name]) == dtype
        ]
        optimizers = [make(rule, arguments) for rule, _, arguments in cases]
        found = jax.jit(lambda optimizers: [scan_updates(each, params, gradients) for each in optimizers])(optimizers)
        assert len(found) >= 3
        for (rule, name, arguments), (updates, state) in zip(cases, found, strict=True):
            exact = {key: value for key, value in arguments.items() if key != name}
            right, _ = walk(ORACLES[rule](**exact), params, gradients)
            bound = {"float32": 1e-7, "bfloat16": 0.006, "float16": 0.0015}[dtype]
            # Of a sign a rounding can make the other; the slow average is among float16's smallest numbers.
            bound = {"lion": 0.08, "ademamix": 0.06}.get(rule, bound)
            assert deviation(updates, right) <= bound, arguments
            narrow = {"sgd": ["trace"], "ademamix": ["m1", "m2"]}.get(rule, ["mu"])
            chex.assert_type([getattr(state, each) for each in narrow], jnp.dtype(dtype))
            chex.assert_type(updates, np.float64)

    # In float32 a tie of Lion's signs that is off by rounding alone would be a whole step; none of these is.
    @pytest.mark.parametrize("rule", ORACLES)
    def test_float32(self, rule):
        """From the first step, and from the last ones that the counter counts."""
        cases = cases_of(rule, CONSTANT)
        optimizers = [make(rule, arguments) for arguments in cases]
        params, gradients = start().astype(np.float32), noisy_gradients(100).astype(np.float32)
        wide_params, wide_gradients = np.float64(params), np.float64(gradients)

        @jax.jit
        def run(states):
            walks = zip(optimizers, states, strict=True)
            return [scan_updates(each, jnp.asarray(params), gradients, state) for each, state in walks]

        states = [each.init(params) for each in optimizers]
        late = LAST_STEP - 3
        for count in (0, late):
            found = run([state._replace(count=jnp.int32(count)) for state in states])
            for arguments, (updates, state) in zip(cases, found, strict=True):
                chex.assert_type(updates, np.float32)
                chex.assert_type([leaf for leaf in jax.tree.leaves(state) if leaf.ndim], np.float32)
                chex.assert_type(state.count, np.int32)
                assert state.count == min(count + 100, LAST_STEP)
                oracle = ORACLES[rule](**arguments)
                right, _ = walk(oracle, wide_params, wide_gradients, {**oracle.init(wide_params), "count": count})
                assert deviation(updates, right) <= 1e-5, (arguments, count)

    @pytest.mark.parametrize("rule", ORACLES)
    def test_float32_with_traced_hyperparameters(self, rule):
        """Schedules, masks and directions alone are the same whether numbers are traced or not; here are numbers."""
        params, gradients = start().astype(np.float32), noisy_gradients(100).astype(np.float32)
        plain = {"learning_rate": 0.01, "weight_decay": 0.1, "b3": 0.99, "alpha": 5.0}
        cases = [
            {
                name: plain[name] if value is None or (callable(value) and name in plain) else value
                for name, value in arguments.items()
                if name != "mask"
            }
            for arguments in cases_of(rule, CASES)
        ]
        groups = grouped_by_optimizer(rule, cases)
        # What flags change has no part in whether numbers are traced, so where there are several, the larger groups.
        groups = [each for each in groups if len(each[0]) > 1] or groups[:1]
        run = jax.jit(
            lambda batches: [mapped(lambda each: scan_updates(each, params, gradients), batch) for batch in batches]
        )
        seen = 0
        for arguments, (updates, _) in each_of(groups, run([batch for _, batch in groups])):
            # A traced hyperparameter is the float32 number that it is, and so must the oracle's be.
            known = {name: float(np.float32(x)) if isinstance(x, float) else x for name, x in arguments.items()}
            for parameter in inspect.signature(ORACLES[rule]).parameters.values():
                if isinstance(parameter.default, float):
                    known.setdefault(parameter.name, float(np.float32(parameter.default)))
            right, _ = walk(ORACLES[rule](**known), np.float64(params), np.float64(gradients))
            assert deviation(updates, right) <= 1e-5, arguments
            seen += 1
        assert seen == sum(len(group) for group, _ in groups)


MASKS = {
    "tree": {"layer": {"w": True, "b": False}, "scale": True},
    "prefix": {"layer": False, "scale": True},
    "function": lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
}


CHOSEN = {
    "tree": {"layer": {"w": True, "b": False}, "scale": True},
    "prefix": {"layer": {"w": False, "b": False}, "scale": True},
    "function": {"layer": {"w": True, "b": False}, "scale": False},
}


class TestWeightDecayMask:
    """Of the two kinds of decay; that each rule has its mask is seen in the cases with ``mask=False``."""

    @pytest.mark.usefixtures("x64")
    @pytest.mark.parametrize("rule", ["adadelta", "adamw"])
    def test_of_every_kind(self, rule):
        params, gradients = layered(), layered(1000)
        arguments = {"learning_rate": 0.1, "weight_decay": rising}
        of_mask = "weight_decay_mask" if rule == "adadelta" else "mask"
        optimizers = {mask: make(rule, {**arguments, of_mask: MASKS[mask]}) for mask in MASKS}
        run = jax.jit(lambda: {mask: walk_tree(each, params, gradients) for mask, each in optimizers.items()})
        for mask, updates in run().items():

            def compare(update, decay, param, grads):
                oracle = ORACLES[rule](0.1, weight_decay=rising if decay else 0.0)
                assert deviation(update, walk(oracle, param, grads)[0]) <= 1e-12

            jax.tree.map(compare, updates, CHOSEN[mask], params, gradients)


def layered(*lead):
    generator = np.random.default_rng(10 + len(lead))
    shapes = {"layer": {"w": (4, 3), "b": (3,)}, "scale": (5,)}
    return jax.tree.map(
        lambda shape: generator.normal(size=(*lead, *shape)), shapes, is_leaf=lambda node: isinstance(node, tuple)
    )


def run_tree(transformation, params, gradients):
    return jax.jit(functools.partial(walk_tree, transformation))(params, gradients)


def walk_tree(transformation, params, gradients):
    def step(carry, grad):
        params, state = carry
        updates, state = transformation.update(grad, state, params)
        return (optax.apply_updates(params, updates), state), updates

    params = jax.tree.map(jnp.asarray, params)
    return jax.lax.scan(step, (params, transformation.init(params)), gradients)[1]


@pytest.mark.parametrize("rule", [rule for rule in ORACLES if hasattr(optax, rule)])
def test_signature_is_that_of_optax(rule):
    ours = inspect.signature(getattr(jaxopt_adam, rule)).parameters
    theirs = inspect.signature(getattr(optax, rule)).parameters
    shared = [name for name in ours if name in theirs]
    assert shared == list(theirs)
    for name in shared:
        assert (ours[name].default, ours[name].kind) == (theirs[name].default, theirs[name].kind)
    # What optax has not can be given by name only, so that it never takes a place that optax may need.
    assert all(ours[name].kind is inspect.Parameter.KEYWORD_ONLY for name in ours if name not in theirs)


def moments_of(state):
    return {name: value for name, value in state._asdict().items() if name != "count" and value is not None}


class TestDtypes:
    @pytest.mark.usefixtures("x64")
    @pytest.mark.parametrize("rule", [rule for rule in ORACLES if rule != "adam_atan2"])
    def test_complex128(self, rule):
        params, gradients = start(True), noisy_gradients(STEPS, imaginary=True)
        cases = cases_of(rule, COMPLEX)
        optimizers = [make(rule, arguments) for arguments in cases]
        found = jax.jit(lambda: [scan_updates(each, jnp.asarray(params), gradients) for each in optimizers])()
        for arguments, (updates, state) in zip(cases, found, strict=True):
            chex.assert_type(updates, np.complex128)
            for name, moment in moments_of(state).items():
                chex.assert_type(moment, np.float64 if name in REAL_FIELDS else np.complex128)
            right, _ = walk(ORACLES[rule](**arguments), params, gradients)
            assert deviation(updates, right) <= 1e-12, arguments


# What the table of test_family has not, where no rule's ε makes a quotient of nought by nought one by ε.
WITHOUT_EPS = [
    ("rmsprop", {"learning_rate": 0.01, "eps": 0.0, "eps_in_sqrt": False}),
    ("rmsprop", {"learning_rate": 0.01, "eps": 0.0, "centered": True, "momentum": 0.9, "nesterov": True}),
    ("rmsprop", {"learning_rate": 0.01, "eps": 0.0, "centered": True, "eps_in_sqrt": False}),
    ("rmsprop", {"learning_rate": 0.01, "eps": 0.0, "bias_correction": True}),
    ("adam", {"learning_rate": 0.01, "eps": 0.0, "nesterov": True}),
    ("adam", {"learning_rate": None, "eps": 0.0, "b1": 0.0, "b2": 0.0}),
    ("adamaxw", {"learning_rate": 0.01, "eps": 0.0, "b1": 0.0, "b2": 0.0}),
    ("adam_atan2", {"learning_rate": 0.01, "b": 0.0}),
]


def test_zero_gradients_give_zero_updates_at_first_and_finite_ones_ever_after():
    path = np.zeros((400, 3), np.float32)
    path[3], path[5] = [1.0, -0.01, 100.0], [0.5, -0.5, 0.0]
    optimizers = [make(rule, arguments) for rule, arguments in WITHOUT_EPS]
    found = jax.jit(lambda: [scan_updates(each, jnp.zeros(3), path)[0] for each in optimizers])()
    for case, updates in zip(WITHOUT_EPS, found, strict=True):
        assert np.isfinite(updates).all(), case
        assert (updates[:3] == 0).all(), case
        assert (updates[3] != 0).all(), case


def layers(dtype=jnp.float32):
    return {"layer": {"w": jnp.ones((2, 3), dtype), "b": jnp.ones(3, dtype)}}


SOME = pytest.mark.parametrize("made", [jaxopt_adam.sgd(0.1, momentum=0.9), jaxopt_adam.adam(0.1)], ids=["sgd", "adam"])


class TestErrors:
    """In full words; that every rule raises them, and names the leaf, is in test_properties."""

    @staticmethod
    def updated(made, gradients, params):
        return jax.eval_shape(made.update, gradients, made.init(params), params)

    @SOME
    @pytest.mark.parametrize("wrong", [np.int32, np.uint8, np.bool_])
    def test_leaf_that_is_not_of_a_floating_point_dtype(self, made, wrong):
        params = {"layer": {"w": jnp.ones(2), "steps": jnp.ones(2, wrong)}}
        with pytest.raises(TypeError, match=rf"\['layer'\]\['steps'\].*floating.*{np.dtype(wrong).name}"):
            self.updated(made, params, params)

    @SOME
    def test_leaf_that_is_no_array(self, made):
        with pytest.raises(TypeError, match=r"\['layer'\]\['name'\].*'dense'"):
            made.init({"layer": {"w": jnp.ones(2), "name": "dense"}})

    def test_leaf_that_is_no_array_where_there_are_no_moments(self):
        made, params = jaxopt_adam.sgd(0.1), {"layer": {"w": jnp.ones(2), "name": "dense"}}
        with pytest.raises(TypeError, match=r"\['layer'\]\['name'\].*'dense'"):
            made.update(params, made.init(params), params)

    @SOME
    @pytest.mark.parametrize(
        ("error", "change", "said"),
        [
            (ValueError, {"b": None}, r"same tree.*\['layer'\]\['b'\]"),
            (ValueError, {"gain": jnp.ones(3)}, r"same tree.*\['layer'\]\['gain'\]"),
            (ValueError, {"b": jnp.ones(4)}, r"\['layer'\]\['b'\].*\(4,\).*\(3,\)"),
            (ValueError, {"b": jnp.ones((1, 3))}, r"\['layer'\]\['b'\].*\(1, 3\).*\(3,\)"),
            (TypeError, {"b": jnp.ones(3, jnp.int32)}, r"\['layer'\]\['b'\].*floating.*int32"),
            (TypeError, {"b": jnp.ones(3, jnp.complex64)}, r"\['layer'\]\['b'\].*complex64.*float32"),
        ],
        ids=["a leaf less", "a leaf more", "another shape", "a shape that would broadcast", "integers", "complex"],
    )
    def test_gradients_that_do_not_fit(self, made, error, change, said):
        params = layers()
        gradients = {"layer": {key: leaf for key, leaf in (params["layer"] | change).items() if leaf is not None}}
        state = made.init(params)
        before = jax.tree.map(np.array, state)
        for update in (made.update, jax.jit(made.update)):
            with pytest.raises(error, match=said):
                update(gradients, state, params)
        chex.assert_trees_all_equal(state, before)

    @pytest.mark.parametrize("rule", ["adadelta", *DECAYED])
    @pytest.mark.parametrize("weight_decay", [0.1, rising, {"layer": 0.1}], ids=name_of)
    def test_weight_decay_without_parameters(self, rule, weight_decay):
        optimizer, params = make(rule, {"learning_rate": 1.0, "weight_decay": weight_decay}), layers()
        with pytest.raises(ValueError, match=r"weight_decay needs the parameters.*params"):
            jax.eval_shape(optimizer.update, params, optimizer.init(params))

    @pytest.mark.parametrize("rule", DECAYED)
    def test_mask_that_is_no_prefix(self, rule):
        optimizer, params = make(rule, {"learning_rate": 1.0, "weight_decay": 0.1, "mask": {"other": True}}), layers()
        with pytest.raises(ValueError, match=r"mask"):
            self.updated(optimizer, params, params)

    @pytest.mark.parametrize("rule", ["adadelta", "adamw"])
    @pytest.mark.parametrize(
        ("change", "said"),
        [(None, r"same tree.*\['layer'\]\['b'\]"), ((4,), r"\['layer'\]\['b'\]"), ((1, 3), r"\['layer'\]\['b'\]")],
    )
    def test_weight_decay_with_parameters_that_do_not_fit(self, rule, change, said):
        optimizer, params = make(rule, {"learning_rate": 1.0, "weight_decay": 0.1}), layers()
        wrong = {"w": params["layer"]["w"]} | ({} if change is None else {"b": jnp.ones(change)})
        with pytest.raises(ValueError, match=said):
            jax.eval_shape(optimizer.update, params, optimizer.init(params), {"layer": wrong})

    @pytest.mark.parametrize("name", ["learning_rate", "b2"])
    def test_batched_hyperparameter_without_vmap(self, name):
        optimizer, params = jaxopt_adam.adam(**{"learning_rate": 0.1, name: np.array([0.9, 0.99])}), layers()
        with pytest.raises(ValueError, match=r"\['layer'\]\['b'\].*\(2,\).*\(3,\).*vmap"):
            self.updated(optimizer, params, params)


RATE, DECAY, NOT_NEGATIVE = [-0.1, np.nan, np.inf], [-0.1, 1.0, 1.5, np.nan], [-1e-9, np.nan, np.inf]
RANGES = [
    *(("sgd", "learning_rate", wrong) for wrong in RATE),
    *(("sgd", "momentum", wrong) for wrong in DECAY),
    *(("adagrad", "learning_rate", wrong) for wrong in RATE),
    *(("adagrad", "initial_accumulator_value", wrong) for wrong in NOT_NEGATIVE),
    *(("adagrad", "eps", wrong) for wrong in NOT_NEGATIVE),
    *(("adadelta", "learning_rate", wrong) for wrong in RATE),
    *(("adadelta", "rho", wrong) for wrong in DECAY),
    *(("adadelta", "eps", wrong) for wrong in NOT_NEGATIVE),
    *(("adadelta", "weight_decay", wrong) for wrong in NOT_NEGATIVE),
    *(("rmsprop", "learning_rate", wrong) for wrong in RATE),
    *(("rmsprop", "decay", wrong) for wrong in DECAY),
    *(("rmsprop", "eps", wrong) for wrong in NOT_NEGATIVE),
    *(("rmsprop", "initial_scale", wrong) for wrong in NOT_NEGATIVE),
    *(("rmsprop", "momentum", wrong) for wrong in DECAY),
    *(("adam", "learning_rate", wrong) for wrong in RATE),
    *(("adam", "b1", wrong) for wrong in DECAY),
    *(("adam", "b2", wrong) for wrong in DECAY),
    *(("adam", "eps", wrong) for wrong in NOT_NEGATIVE),
    *(("adam", "eps_root", wrong) for wrong in NOT_NEGATIVE),
    *(
        (rule, name, {"b1": 1.0, "b2": np.nan, "b3": -0.1}.get(name, -0.1))
        for rule in list(ORACLES)[5:]
        for name, parameter in inspect.signature(ORACLES[rule]).parameters.items()
        if name == "learning_rate" or isinstance(parameter.default, float)
    ),
]
TYPES = [
    ("sgd", "learning_rate", "fast"),
    ("sgd", "nesterov", 1),
    ("sgd", "accumulator_dtype", "nonsense"),
    ("adagrad", "eps", None),
    ("adadelta", "rho", falling),
    ("rmsprop", "decay", None),
    ("rmsprop", "centered", None),
    ("rmsprop", "eps_in_sqrt", "no"),
    ("rmsprop", "bias_correction", 0),
    ("rmsprop", "nesterov", "yes"),
    ("adam", "b1", None),
    ("adam", "learning_rate", 1j),
    ("adam", "nesterov", np.array([True, False])),
    ("adamw", "weight_decay", "much"),
    ("adamw", "weight_decay", None),
    ("lion", "weight_decay", 1j),
    ("nadam", "nesterov", 1),
    ("amsgrad", "bias_correction_mu", 1),
    ("amsgrad", "bias_correction_nu", None),
    ("radam", "threshold", falling),
    ("adan", "b3", None),
    ("adam_atan2", "a", "pi"),
]


class TestHyperparameters:
    @pytest.mark.parametrize("rule", ORACLES)
    def test_out_of_range_fails_when_the_optimizer_is_made(self, rule):
        wrongs = [(name, wrong) for other, name, wrong in RANGES if other == rule]
        kinds = [float, np.float32, jnp.float32, lambda value: np.array([0.5, value])]
        assert wrongs
        for (name, wrong), kind in itertools.product(wrongs, kinds):
            with pytest.raises(ValueError, match=f"{rule}: {name} must be"):
                make(rule, {"learning_rate": 0.1, name: kind(wrong)})

    @pytest.mark.parametrize("rule", ORACLES)
    def test_out_of_range_cannot_be_seen_where_it_is_traced(self, rule):
        def use(values):
            optimizer = make(rule, {"learning_rate": 0.1} | values)
            return optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)), jnp.ones(2))[0]

        wrongs = {name: wrong for other, name, wrong in RANGES if other == rule}
        chex.assert_shape(jax.eval_shape(use, wrongs), (2,))

    @pytest.mark.parametrize(("rule", "name", "wrong"), TYPES)
    def test_of_a_wrong_type_fails_when_the_optimizer_is_made(self, rule, name, wrong):
        with pytest.raises(TypeError, match=f"{rule}: {name} must be"):
            make(rule, {"learning_rate": 0.1, name: wrong})

    @pytest.mark.parametrize(
        ("rule", "name"),
        [("sgd", "accumulator_dtype"), *((rule, "mu_dtype") for rule in ["adam", "adamw", "nadam", "amsgrad", "lion"])],
    )
    def test_dtype_that_is_not_of_floating_point(self, rule, name):
        with pytest.raises(ValueError, match=f"{rule}: {name} must be a floating-point dtype or None, got int32"):
            make(rule, {"learning_rate": 0.1, name: "int32"})

    @pytest.mark.parametrize("rule", [rule for rule in ORACLES if rule != "adadelta"])
    def test_learning_rate_must_be_given(self, rule):
        with pytest.raises(TypeError, match="learning_rate"):
            make(rule, {})


class TestTrees:
    @SOME
    def test_masked_and_chained(self, made):
        params = {"w": jnp.ones((2, 3)), "steps": jnp.ones(2, jnp.int32)}
        optimizer = optax.masked(optax.chain(optax.scale(2.0), made), {"w": True, "steps": False})
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        right, _ = made.update(2 * params["w"], made.init(params["w"]), params["w"])
        chex.assert_trees_all_equal(updates, {"w": right, "steps": params["steps"]})

    @SOME
    @pytest.mark.parametrize("params", [None, [], {"a": {}}], ids=repr)
    def test_empty_tree(self, made, params):
        updates, state = made.update(params, made.init(params), params)
        assert updates == params
        assert state.count == 1

    def test_none_is_for_parameters_that_are_not_given(self):
        with pytest.raises(ValueError, match="weight_decay needs the parameters"):
            jaxopt_adam.adamw(0.1).update(None, jaxopt_adam.adamw(0.1).init(None), None)

    @over(FULL)
    def test_state_is_read_by_the_names_of_its_fields(self, rule, arguments):
        optimizer, params = make(rule, arguments), layers()
        state = jax.eval_shape(optimizer.init, params)
        assert set(moments_of(state)) == FIELDS[rule]
        for name in FIELDS[rule]:
            assert optax.tree.get(state, name) is getattr(state, name)
            chex.assert_trees_all_equal_shapes_and_dtypes(getattr(state, name), params)
        chained = jax.eval_shape(optax.chain(optax.clip(1.0), optimizer).init, params)
        assert optax.tree.get(chained, "count") is chained[1].count

    def test_state_that_is_not_needed_is_not_there(self):
        assert jaxopt_adam.sgd(0.1).init(jnp.ones(2)).trace is None
        state = jaxopt_adam.rmsprop(0.1).init(jnp.ones(2))
        assert (state.mu, state.trace) == (None, None)

    def test_initial_values(self):
        np.testing.assert_array_equal(jaxopt_adam.adagrad(0.1).init(jnp.ones(2)).sum_of_squares, np.float32([0.1, 0.1]))
        np.testing.assert_array_equal(jaxopt_adam.rmsprop(0.1, initial_scale=3.0).init(jnp.ones(2)).nu, [3, 3])
        for rule, arguments in FULL:
            for name, moment in moments_of(make(rule, arguments).init(jnp.ones(2))).items():
                right = {"yogi": np.float32(1e-6), "adagrad": np.float32(0.1)}.get(rule, 0)
                assert (moment == right).all(), name


PARTS = [
    ("adadelta", {}),
    ("rmsprop", {"momentum": 0.9, "nesterov": True}),
    ("adamw", {}),
]


def at(tree, path):
    return functools.reduce(lambda node, key: node[key], path, tree)


class TestParts:
    """A learning rate or a weight decay that is a tree of numbers and schedules."""

    @pytest.mark.usefixtures("x64")
    @over(PARTS)
    def test_each_part_is_as_with_its_own_optimizer(self, rule, arguments):
        params, gradients = layered(), layered(100)
        given = {"learning_rate": {"layer": {"w": 0.02, "b": falling}, "scale": 0.5}}
        if rule in ["adadelta", *DECAYED]:
            given["weight_decay"] = {"layer": rising, "scale": 0.1}
        updates = run_tree(make(rule, {**arguments, **given}), params, gradients)
        for path, *wanted in [
            (("layer", "w"), 0.02, rising),
            (("layer", "b"), falling, rising),
            (("scale",), 0.5, 0.1),
        ]:
            own = {**arguments, **dict(zip(given, wanted, strict=False))}
            right, _ = walk(ORACLES[rule](**own), at(params, path), at(gradients, path))
            assert deviation(at(updates, path), right) <= 1e-12

    @pytest.mark.parametrize("container", [list, tuple])
    def test_of_lists_and_tuples(self, container):
        params = container([jnp.ones(2), {"a": jnp.ones(3)}])
        optimizer = jaxopt_adam.sgd(container([0.5, falling]))
        updates, state = optimizer.update(params, optimizer.init(params), params)
        updates, _ = optimizer.update(params, state, params)
        np.testing.assert_array_equal(updates[0], [-0.5, -0.5])
        np.testing.assert_allclose(updates[1]["a"], -falling(1), rtol=1e-6)

    @pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
    def test_that_is_no_prefix_of_the_parameters(self, name):
        params = jax.tree.map(jnp.asarray, layered())
        for tree in (
            {"layer": 0.1},
            {"layer": 0.1, "other": falling},
            {"layer": {"w": 0.1, "b": {"x": 0.1}}, "scale": 0.1},
            [0.1, 0.1],
        ):
            optimizer = jaxopt_adam.adamw(**{"learning_rate": 0.1, name: tree})
            with pytest.raises(ValueError, match=f"{name} must have the tree of the parameters, or a prefix of it"):
                jax.eval_shape(optimizer.update, params, optimizer.init(params), params)

    @pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
    @pytest.mark.parametrize("rule", ["adadelta", *DECAYED])
    def test_entries_are_checked(self, rule, name):
        for wrong in RATE:
            with pytest.raises(
                ValueError, match=rf"{rule}: {name}\['layer'\]\['b'\] must be a number ≥ 0.*got {wrong}"
            ):
                make(rule, {"learning_rate": 0.1, name: {"layer": {"w": falling, "b": wrong}, "scale": 0.1}})
        with pytest.raises(TypeError, match=rf"{rule}: {name}\['layer'\]\[1\] must be a number ≥ 0.*'fast'"):
            make(rule, {"learning_rate": 0.1, name: {"layer": [falling, "fast"], "scale": 0.1}})

    def test_new_numbers_need_no_new_trace(self):
        params, traces = jax.tree.map(jnp.ones_like, layers()), []

        @jax.jit
        def step(optimizer, params, state):
            traces.append(optimizer)
            return optimizer.update(params, state, params)[0]["layer"]

        for rate, decay in [(0.1, 0.0), (np.float32(0.2), 0.5), (1, 0.25), (np.float64(0.3), 1.0)]:
            tree = {"layer": {"w": rate, "b": falling}}
            optimizer = jaxopt_adam.adamw(tree, weight_decay={"layer": {"w": decay, "b": rising}})
            updates = step(optimizer, params, optimizer.init(params))
            np.testing.assert_allclose(updates["w"], -rate * (1 + decay) * np.ones((2, 3)), rtol=1e-6)
            np.testing.assert_allclose(updates["b"], -falling(0) * (1 + rising(0)) * np.ones(3), rtol=1e-6)
        assert len(traces) == 1


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 4e-7), (np.float64, 2e-12)])
def test_the_length_of_the_average_in_radam(dtype, tolerance):
    """ρ_t = ρ_∞ − 2t β₂ᵗ / (1 − β₂ᵗ), in which the digits of large numbers cancel while t is small."""
    shares, steps = dtype([0.1, 0.01, 0.001, 1e-4, 1e-5]), np.array([1, 2, 5, 7, 10, 24, 26, 90, 240, 260, 3_000])
    worst = 0.0
    with jax.enable_x64(dtype is np.float64), mpmath.workdps(50):
        for share, step in itertools.product(shares, steps.tolist()):
            power = (1 - mpmath.mpf(float(share))) ** step
            exact = 2 / mpmath.mpf(float(share)) - 1 - 2 * step * power / (1 - power)
            length = _length(share, jnp.asarray(step, dtype), jnp.asarray(float(1 - power), dtype))
            worst = max(worst, abs(float(float(length) / exact - 1)))
    assert worst < tolerance
