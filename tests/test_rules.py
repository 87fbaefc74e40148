import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from agreement import deviation, falling, library_updates, name_of, noisy_gradients, over, rising, scan_updates, start
from oracles import ORACLES, walk

import jaxopt_adam

LAST_STEP = 2**31 - 1


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
    # Optax weighs Adan's differences by 1 − b2, the paper and its authors' code by b2.
    return hasattr(optax, rule) and (rule != "adan" or arguments.get("b2") == 0.5)


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


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_optax(rule, options, numbers, params, gradients):
    return scan_updates(make_optax(rule, {**dict(options), **numbers}), params, gradients)[0]


def optax_updates(rule, arguments, params, gradients):
    """Compiled once for all the numbers that a rule takes."""
    numbers = {name: value for name, value in arguments.items() if isinstance(value, float)}
    options = tuple((name, value) for name, value in arguments.items() if name not in numbers)
    return run_optax(rule, options, numbers, jnp.asarray(params), jnp.asarray(gradients))


class TestAgreement:
    @over(CASES)
    @pytest.mark.usefixtures("x64")
    def test_float64_with_the_oracle_and_with_optax(self, rule, arguments):
        params, gradients = start(), noisy_gradients(1000)
        updates, state = library_updates(make(rule, arguments), params, gradients)
        right, right_state = walk(ORACLES[rule](**arguments), params, gradients)
        assert deviation(updates, right) <= 1e-12
        for name, value in state._asdict().items():
            if value is not None:
                np.testing.assert_allclose(value, right_state[name], rtol=1e-9)
        if is_in_optax(rule, arguments):
            assert deviation(updates, optax_updates(rule, arguments, params, gradients)) <= 1e-12

    def test_adan_weighs_the_differences_as_its_paper_does(self):
        optimizer, param = jaxopt_adam.adan(1.0, eps_root=0.0), jnp.float32(0)
        _, state = optimizer.update(jnp.float32(1), optimizer.init(param))
        update, _ = optimizer.update(jnp.float32(3), state)
        m, v, n = 0.98 * 0.02 * 1 + 0.02 * 3, 0.08 * 2, 0.99 * 0.01 * 1 + 0.01 * (3 + 0.92 * 2) ** 2
        ahead = m / (1 - 0.98**2) + 0.92 * v / (1 - 0.92**2)
        np.testing.assert_allclose(update, -ahead / np.sqrt(n / (1 - 0.99**2)), rtol=1e-6)
        np.testing.assert_allclose(update, -0.8475, rtol=1e-4)

    @over(NARROW_CASES)
    @pytest.mark.usefixtures("x64")
    def test_float64_that_is_stored_in_less(self, rule, arguments):
        params, gradients = start(), noisy_gradients(1000)
        updates, state = library_updates(make(rule, arguments), params, gradients)
        name = "accumulator_dtype" if rule == "sgd" else "mu_dtype"
        dtype = jnp.dtype(arguments[name])
        exact = {key: value for key, value in arguments.items() if key != name}
        right, _ = walk(ORACLES[rule](**exact), params, gradients)
        bound = {"float32": 1e-7, "bfloat16": 0.006, "float16": 0.0015}[dtype.name]
        # Of a sign a rounding can make the other; the slow average is among float16's smallest numbers.
        bound = {"lion": 0.08, "ademamix": 0.06}.get(rule, bound)
        assert deviation(updates, right) <= bound
        narrow = {"sgd": ["trace"], "ademamix": ["m1", "m2"]}.get(rule, ["mu"])
        chex.assert_type([getattr(state, each) for each in narrow], dtype)
        chex.assert_type(updates, np.float64)

    # In float32 a tie of Lion's signs that is off by rounding alone would be a whole step; none of these is.
    @over(CONSTANT)
    def test_float32(self, rule, arguments):
        params, gradients = start().astype(np.float32), noisy_gradients(100).astype(np.float32)
        updates, state = library_updates(make(rule, arguments), params, gradients)
        chex.assert_type(updates, np.float32)
        chex.assert_type([leaf for leaf in jax.tree.leaves(state) if leaf.ndim], np.float32)
        right, _ = walk(ORACLES[rule](**arguments), np.float64(params), np.float64(gradients))
        assert deviation(updates, right) <= 1e-5

    @over(CASES)
    def test_float32_with_traced_hyperparameters(self, rule, arguments):
        params, gradients = start().astype(np.float32), noisy_gradients(100).astype(np.float32)
        updates, _ = jax.jit(scan_updates)(make(rule, arguments), params, gradients)
        # A traced hyperparameter is the float32 number that it is, and so must the oracle's be.
        known = {name: float(np.float32(x)) if isinstance(x, float) else x for name, x in arguments.items()}
        for parameter in inspect.signature(ORACLES[rule]).parameters.values():
            if isinstance(parameter.default, float):
                known.setdefault(parameter.name, float(np.float32(parameter.default)))
        right, _ = walk(ORACLES[rule](**known), np.float64(params), np.float64(gradients))
        assert deviation(updates, right) <= 1e-5


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
    @pytest.mark.usefixtures("x64")
    @pytest.mark.parametrize("mask", MASKS)
    @pytest.mark.parametrize("weight_decay", [0.1, rising], ids=name_of)
    def test_of_adadelta(self, mask, weight_decay):
        params, gradients = layered(), layered(1000)
        arguments = {"learning_rate": 1.0, "weight_decay": weight_decay, "weight_decay_mask": MASKS[mask]}
        updates = run_tree(jaxopt_adam.adadelta(**arguments), params, gradients)
        optax_updates = run_tree(optax.adadelta(**arguments), params, gradients)

        def compare(update, optax_update, decay, param, grads):
            oracle = ORACLES["adadelta"](1.0, weight_decay=weight_decay if decay else 0.0)
            assert deviation(update, walk(oracle, param, grads)[0]) <= 1e-12
            assert deviation(update, optax_update) <= 1e-12

        jax.tree.map(compare, updates, optax_updates, CHOSEN[mask], params, gradients)

    @pytest.mark.usefixtures("x64")
    @pytest.mark.parametrize(
        ("rule", "mask", "weight_decay"),
        [
            *(("adamw", mask, weight_decay) for mask in MASKS for weight_decay in (0.1, rising)),
            *((rule, list(MASKS)[index % 3], rising) for index, rule in enumerate(DECAYED[1:])),
        ],
        ids=name_of,
    )
    def test_of_decoupled_decay(self, rule, mask, weight_decay):
        params, gradients = layered(), layered(1000)
        arguments = {"learning_rate": 0.01, "weight_decay": weight_decay}
        updates = run_tree(make(rule, {**arguments, "mask": MASKS[mask]}), params, gradients)

        def compare(update, decay, param, grads):
            oracle = ORACLES[rule](**arguments, mask=decay)
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
    @over(FULL + BARE)
    @pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
    def test_low_precision_is_the_float32_run_rounded(self, rule, arguments, dtype):
        params = jnp.asarray(start(), dtype)
        gradients = jnp.asarray(noisy_gradients(100), dtype)
        # The parameters stay, since rounded ones would go another way, and a weight decay would see that.
        updates, state = library_updates(make(rule, arguments), params, gradients, moving=False)
        chex.assert_type(updates, dtype)
        chex.assert_type([leaf for leaf in jax.tree.leaves(state) if leaf.ndim], np.float32)
        wide_updates, wide_state = library_updates(
            make(rule, arguments), params.astype(jnp.float32), gradients.astype(jnp.float32), moving=False
        )
        chex.assert_trees_all_equal(updates, wide_updates.astype(dtype))
        chex.assert_trees_all_equal(state, wide_state)
        right, _ = walk(ORACLES[rule](**arguments), np.float64(params), np.float64(gradients), moving=False)
        assert deviation(wide_updates, right) <= 1e-5

    @pytest.mark.usefixtures("x64")
    @over(COMPLEX)
    def test_complex128(self, rule, arguments):
        params, gradients = start(True), noisy_gradients(1000, imaginary=True)
        updates, state = library_updates(make(rule, arguments), params, gradients)
        chex.assert_type(updates, np.complex128)
        for name, moment in moments_of(state).items():
            chex.assert_type(moment, np.float64 if name in REAL_FIELDS else np.complex128)
        right, _ = walk(ORACLES[rule](**arguments), params, gradients)
        assert deviation(updates, right) <= 1e-12
        # Optax squares g in AdaDelta, rather than |g|.
        if rule != "adadelta" and is_in_optax(rule, arguments):
            assert deviation(updates, optax_updates(rule, arguments, params, gradients)) <= 1e-12

    def test_adam_atan2_takes_no_complex_numbers(self):
        optimizer, params = jaxopt_adam.adam_atan2(0.1), {"layer": {"w": jnp.ones(2), "c": jnp.ones(2, jnp.complex64)}}
        with pytest.raises(TypeError, match=r"\['layer'\]\['c'\].*complex64"):
            optimizer.update(params, optimizer.init(params), params)

    def test_radam_where_its_length_is_a_difference_of_large_numbers(self):
        with jax.enable_x64(True):
            arguments = {"learning_rate": 0.01, "b2": 0.99999}
            params, gradients = start(), noisy_gradients(1000)
            updates, _ = library_updates(make("radam", arguments), params, gradients)
            assert deviation(updates, walk(ORACLES["radam"](**arguments), params, gradients)[0]) <= 1e-12


WITHOUT_EPS = [
    ("adagrad", {"learning_rate": 0.1, "eps": 0.0, "initial_accumulator_value": 0.0}),
    ("adadelta", {"learning_rate": 1.0, "eps": 0.0}),
    ("rmsprop", {"learning_rate": 0.01, "eps": 0.0}),
    ("rmsprop", {"learning_rate": 0.01, "eps": 0.0, "eps_in_sqrt": False}),
    ("rmsprop", {"learning_rate": 0.01, "eps": 0.0, "centered": True, "momentum": 0.9, "nesterov": True}),
    ("rmsprop", {"learning_rate": 0.01, "eps": 0.0, "centered": True, "eps_in_sqrt": False}),
    ("rmsprop", {"learning_rate": 0.01, "eps": 0.0, "bias_correction": True}),
    ("adam", {"learning_rate": 0.01, "eps": 0.0}),
    ("adam", {"learning_rate": 0.01, "eps": 0.0, "nesterov": True}),
    ("adam", {"learning_rate": None, "eps": 0.0, "b1": 0.0, "b2": 0.0}),
    ("nadamw", {"learning_rate": 0.01, "eps": 0.0}),
    ("adamax", {"learning_rate": 0.01, "eps": 0.0}),
    ("adamaxw", {"learning_rate": 0.01, "eps": 0.0, "b1": 0.0, "b2": 0.0}),
    ("amsgrad", {"learning_rate": 0.01, "eps": 0.0}),
    ("radam", {"learning_rate": 0.01, "eps": 0.0}),
    ("adabelief", {"learning_rate": 0.01, "eps": 0.0, "eps_root": 0.0}),
    ("adan", {"learning_rate": 0.01, "eps": 0.0, "eps_root": 0.0}),
    ("laprop", {"learning_rate": 0.01, "eps": 0.0}),
    ("adam_atan2", {"learning_rate": 0.01, "b": 0.0}),
]


class TestZeroGradient:
    @over([case for case in FULL + BARE + WITHOUT_EPS if case[0] != "yogi"])  # Yogi starts at 1e-6, as optax's does
    def test_gives_a_zero_update_at_first_and_finite_ones_ever_after(self, rule, arguments):
        path = np.zeros((400, 3))
        path[3], path[5] = [1.0, -0.01, 100.0], [0.5, -0.5, 0.0]
        dtypes = [jnp.float16, jnp.bfloat16, jnp.float32] + [jnp.complex64] * (rule != "adam_atan2")
        gradients = {np.dtype(dtype).name: jnp.asarray(path, dtype) for dtype in dtypes}
        params = {name: jnp.zeros(3, leaf.dtype) for name, leaf in gradients.items()}
        updates = jax.jit(lambda: walk_tree(make(rule, arguments), params, gradients))()
        chex.assert_tree_all_finite(updates)
        # Without eps nothing sets the size of AdaDelta's first step, so it never starts.
        starts = rule != "adadelta" or "eps" not in arguments
        for name, update in updates.items():
            chex.assert_type(update, gradients[name].dtype)
            assert (update[:3] == 0).all()
            assert (update[3] != 0).all() == starts

    @over([case for case in FULL + BARE if case[0] != "yogi"])
    def test_of_one_leaf_does_not_touch_another(self, rule, arguments):
        optimizer = make(rule, arguments)
        params = {"still": jnp.zeros(2), "moving": jnp.ones(2)}
        _, state = optimizer.update(params, optimizer.init(params), params)  # which is ADOPT's zero one
        updates, _ = optimizer.update(params, state, params)
        assert (updates["still"] == 0).all()
        assert (updates["moving"] < 0).all()


class TestCounter:
    @over(FULL + BARE)
    def test_counts_updates(self, rule, arguments):
        optimizer = make(rule, arguments)
        state = optimizer.init(jnp.ones(2))
        chex.assert_type(state.count, np.int32)
        for count in range(3):
            assert state.count == count
            _, state = optimizer.update(jnp.ones(2), state, jnp.ones(2))

    @over([*FULL, ("sgd", {"learning_rate": falling}), ("adam", {"learning_rate": falling, "nesterov": True})])
    def test_stops_at_its_maximum_and_the_updates_stay_right(self, rule, arguments):
        params, gradients = start().astype(np.float32), noisy_gradients(20).astype(np.float32)
        optimizer, oracle = make(rule, arguments), ORACLES[rule](**arguments)
        late = LAST_STEP - 3
        late_state = optimizer.init(params)._replace(count=jnp.int32(late))
        updates, last_state = library_updates(optimizer, params, gradients, late_state)
        wide = np.float64(params)
        right, _ = walk(oracle, wide, np.float64(gradients), {**oracle.init(wide), "count": late})
        chex.assert_type(last_state.count, np.int32)
        assert last_state.count == LAST_STEP
        assert deviation(updates, right) <= 1e-5


def layers(dtype=jnp.float32):
    return {"layer": {"w": jnp.ones((2, 3), dtype), "b": jnp.ones(3, dtype)}}


def needs_leaves(optimizer, params):
    """Its `init`, or its `update` where it has no moments, so that `init` has no need of the leaves."""
    state = optimizer.init(params)
    return optimizer.update(params, state, params)


class TestErrors:
    @over(FULL + BARE)
    @pytest.mark.parametrize("wrong", [np.int32, np.uint8, np.bool_])
    def test_leaf_that_is_not_of_a_floating_point_dtype(self, rule, arguments, wrong):
        params = {"layer": {"w": jnp.ones(2), "steps": jnp.ones(2, wrong)}}
        with pytest.raises(TypeError, match=rf"\['layer'\]\['steps'\].*floating.*{np.dtype(wrong).name}"):
            needs_leaves(make(rule, arguments), params)

    @over(FULL + BARE)
    def test_leaf_that_is_no_array(self, rule, arguments):
        with pytest.raises(TypeError, match=r"\['layer'\]\['name'\].*'dense'"):
            needs_leaves(make(rule, arguments), {"layer": {"w": jnp.ones(2), "name": "dense"}})

    @over(FULL)
    def test_gradients_without_a_leaf(self, rule, arguments):
        optimizer, params = make(rule, arguments), layers()
        with pytest.raises(ValueError, match=r"same tree.*\['layer'\]\['b'\]"):
            optimizer.update({"layer": {"w": params["layer"]["w"]}}, optimizer.init(params), params)

    @over(FULL)
    def test_gradients_with_a_leaf_too_many(self, rule, arguments):
        optimizer, params = make(rule, arguments), layers()
        gradients = {"layer": {**params["layer"], "gain": jnp.ones(3)}}
        with pytest.raises(ValueError, match=r"same tree.*\['layer'\]\['gain'\]"):
            optimizer.update(gradients, optimizer.init(params), params)

    @over(FULL)
    def test_gradient_of_another_shape(self, rule, arguments):
        optimizer, params = make(rule, arguments), layers()
        gradients = {"layer": {**params["layer"], "b": jnp.ones(4)}}
        with pytest.raises(ValueError, match=r"\['layer'\]\['b'\].*\(4,\).*\(3,\)"):
            optimizer.update(gradients, optimizer.init(params), params)

    @over(FULL)
    def test_gradient_whose_shape_would_broadcast(self, rule, arguments):
        optimizer, params = make(rule, arguments), layers()
        gradients = {"layer": {**params["layer"], "b": jnp.ones((1, 3))}}
        with pytest.raises(ValueError, match=r"\['layer'\]\['b'\].*\(1, 3\).*\(3,\)"):
            optimizer.update(gradients, optimizer.init(params), params)

    @over(FULL + BARE)
    def test_gradient_that_is_of_integers(self, rule, arguments):
        optimizer, params = make(rule, arguments), layers()
        gradients = {"layer": {**params["layer"], "b": jnp.ones(3, jnp.int32)}}
        with pytest.raises(TypeError, match=r"\['layer'\]\['b'\].*floating.*int32"):
            optimizer.update(gradients, optimizer.init(params), params)

    @over([case for case in FULL if case[0] in ("sgd", "adam") or case[1].get("centered")])
    def test_complex_gradient_of_a_real_parameter(self, rule, arguments):
        optimizer, params = make(rule, arguments), layers()
        gradients = {"layer": {**params["layer"], "b": jnp.ones(3, jnp.complex64)}}
        with pytest.raises(TypeError, match=r"\['layer'\]\['b'\].*complex64.*float32"):
            optimizer.update(gradients, optimizer.init(params), params)

    @over(FULL)
    def test_errors_come_from_within_jit_too(self, rule, arguments):
        optimizer, params = make(rule, arguments), layers()
        gradients = {"layer": {**params["layer"], "b": jnp.ones(4)}}
        with pytest.raises(ValueError, match=r"\['layer'\]\['b'\].*\(4,\).*\(3,\)"):
            jax.jit(optimizer.update)(gradients, optimizer.init(params), params)

    @pytest.mark.parametrize("rule", ["adadelta", *DECAYED])
    @pytest.mark.parametrize("weight_decay", [0.1, rising, {"layer": 0.1}], ids=name_of)
    def test_weight_decay_without_parameters(self, rule, weight_decay):
        optimizer, params = make(rule, {"learning_rate": 1.0, "weight_decay": weight_decay}), layers()
        with pytest.raises(ValueError, match=r"weight_decay needs the parameters.*params"):
            optimizer.update(params, optimizer.init(params))

    @pytest.mark.parametrize("rule", DECAYED)
    def test_no_weight_decay_needs_no_parameters(self, rule):
        optimizer, params = make(rule, {"learning_rate": 1.0, "weight_decay": 0.0}), layers()
        updates, _ = optimizer.update(params, optimizer.init(params))
        chex.assert_trees_all_equal(updates, optimizer.update(params, optimizer.init(params), params)[0])

    @pytest.mark.parametrize("rule", DECAYED)
    def test_mask_that_is_no_prefix(self, rule):
        optimizer, params = make(rule, {"learning_rate": 1.0, "weight_decay": 0.1, "mask": {"other": True}}), layers()
        with pytest.raises(ValueError, match=r"mask"):
            optimizer.update(params, optimizer.init(params), params)

    @pytest.mark.parametrize("rule", ["adadelta", *DECAYED])
    def test_weight_decay_with_parameters_of_another_tree(self, rule):
        optimizer, params = make(rule, {"learning_rate": 1.0, "weight_decay": 0.1}), layers()
        with pytest.raises(ValueError, match=r"same tree.*\['layer'\]\['b'\]"):
            optimizer.update(params, optimizer.init(params), {"layer": {"w": params["layer"]["w"]}})

    @pytest.mark.parametrize("rule", ["adadelta", *DECAYED])
    @pytest.mark.parametrize("shape", [(4,), (1, 3)])
    def test_weight_decay_with_a_parameter_of_another_shape(self, rule, shape):
        optimizer, params = make(rule, {"learning_rate": 1.0, "weight_decay": 0.1}), layers()
        wrong = {"layer": {**params["layer"], "b": jnp.ones(shape)}}
        with pytest.raises(ValueError, match=r"\['layer'\]\['b'\]"):
            optimizer.update(params, optimizer.init(params), wrong)

    @over(FULL + BARE)
    def test_batched_hyperparameter_without_vmap(self, rule, arguments):
        learning_rates = jnp.array([0.1, 0.2])
        optimizer, params = make(rule, {**arguments, "learning_rate": learning_rates}), layers()
        with pytest.raises(ValueError, match=r"\['layer'\]\['b'\].*\(2,\).*\(3,\).*vmap"):
            optimizer.update(params, optimizer.init(params), params)

    def test_batched_decay_without_vmap(self):
        optimizer, params = jaxopt_adam.adam(0.1, b2=np.array([0.9, 0.99])), layers()
        with pytest.raises(ValueError, match=r"\['layer'\]\['b'\].*\(2,\).*\(3,\).*vmap"):
            optimizer.update(params, optimizer.init(params), params)

    @over(FULL + BARE)
    def test_failed_update_changes_nothing(self, rule, arguments):
        optimizer, params = make(rule, arguments), layers()
        state = optimizer.init(params)
        before = jax.tree.map(np.array, state)
        gradients = {"layer": {**params["layer"], "b": jnp.ones(3, jnp.int32)}}
        with pytest.raises(TypeError):
            optimizer.update(gradients, state, params)
        chex.assert_trees_all_equal(state, before)


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
    @pytest.mark.parametrize(("rule", "name", "wrong"), RANGES)
    @pytest.mark.parametrize("kind", [float, np.float32, jnp.float32, lambda value: np.array([0.5, value])])
    def test_out_of_range_fails_when_the_optimizer_is_made(self, rule, name, wrong, kind):
        with pytest.raises(ValueError, match=f"{rule}: {name} must be"):
            make(rule, {"learning_rate": 0.1, name: kind(wrong)})

    @pytest.mark.parametrize(("rule", "name", "wrong"), RANGES)
    def test_out_of_range_cannot_be_seen_where_it_is_traced(self, rule, name, wrong):
        @jax.jit
        def use(value):
            optimizer = make(rule, {"learning_rate": 0.1, name: value})
            return optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)), jnp.ones(2))[0]

        chex.assert_shape(jax.eval_shape(use, wrong), (2,))

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
    @over(FULL + BARE)
    def test_masked_and_chained(self, rule, arguments):
        params = {"w": jnp.ones((2, 3)), "steps": jnp.ones(2, jnp.int32)}
        inner = optax.chain(optax.scale(2.0), make(rule, arguments))
        optimizer = optax.masked(inner, {"w": True, "steps": False})
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        alone = make(rule, arguments)
        right, _ = alone.update(2 * params["w"], alone.init(params["w"]), params["w"])
        chex.assert_trees_all_equal(updates, {"w": right, "steps": params["steps"]})

    @over(FULL + BARE)
    @pytest.mark.parametrize("params", [{}, (), None, [], {"a": {}}], ids=repr)
    def test_empty_tree(self, rule, arguments, params):
        optimizer = make(rule, arguments)
        if params is None and rule in DECAYED:  # None is for parameters that are not given, as in optax
            with pytest.raises(ValueError, match="weight_decay needs the parameters"):
                optimizer.update(params, optimizer.init(params), params)
            return
        updates, state = optimizer.update(params, optimizer.init(params), params)
        assert updates == params
        assert state.count == 1

    @over(FULL + BARE)
    def test_scalars_and_leaves_without_elements(self, rule, arguments):
        optimizer = make(rule, arguments)
        params = {"scalar": jnp.float32(1), "none": jnp.ones((0, 3)), "one": jnp.ones((1, 1))}
        _, state = optimizer.update(params, optimizer.init(params), params)  # which is ADOPT's zero one
        updates, state = optimizer.update(params, state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
        for moment in moments_of(state).values():
            chex.assert_trees_all_equal_shapes_and_dtypes(moment, params)
        assert updates["scalar"] == updates["one"]
        assert updates["scalar"] < 0

    @over(FULL + BARE)
    def test_update_does_not_depend_on_the_other_leaves(self, rule, arguments):
        gradient = jnp.asarray(noisy_gradients(1)[0], jnp.float32)
        optimizer = make(rule, arguments)
        whole, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
        parts = [gradient[:7], {"rest": gradient[7:].reshape(11, 3)}]
        apart, _ = optimizer.update(parts, optimizer.init(parts), parts)
        chex.assert_trees_all_close(jnp.concatenate([apart[0], apart[1]["rest"].ravel()]), whole, rtol=3e-7, atol=0)

    @over(FULL)
    def test_state_is_read_by_the_names_of_its_fields(self, rule, arguments):
        optimizer, params = make(rule, arguments), layers()
        state = optimizer.init(params)
        assert set(moments_of(state)) == FIELDS[rule]
        for name in FIELDS[rule]:
            chex.assert_trees_all_equal(optax.tree.get(state, name), getattr(state, name))
            chex.assert_trees_all_equal_shapes_and_dtypes(getattr(state, name), params)
        chained = optax.chain(optax.clip(1.0), optimizer).init(params)
        assert optax.tree.get(chained, "count") == 0

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
    ("sgd", {"momentum": 0.9}),
    ("adagrad", {}),
    ("adadelta", {}),
    ("rmsprop", {"momentum": 0.9, "nesterov": True}),
    ("adam", {}),
    ("adamw", {}),
    ("adamaxw", {}),
    ("radam", {}),
    ("lion", {}),
    ("adan", {}),
    ("adam_atan2", {}),
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

    def test_against_the_library_itself(self):
        params, gradients = (jax.tree.map(np.float32, tree) for tree in (layered(), layered(10)))
        tree = jaxopt_adam.adamw({"layer": 0.02, "scale": falling}, weight_decay={"layer": rising, "scale": 0.1})
        updates = run_tree(tree, params, gradients)
        for name, own in [
            ("layer", jaxopt_adam.adamw(0.02, weight_decay=rising)),
            ("scale", jaxopt_adam.adamw(falling, weight_decay=0.1)),
        ]:
            right = run_tree(own, params[name], gradients[name])
            chex.assert_trees_all_close(updates[name], right, rtol=1e-6)

    @pytest.mark.parametrize("container", [list, tuple])
    def test_of_lists_and_tuples(self, container):
        params = container([jnp.ones(2), {"a": jnp.ones(3)}])
        optimizer = jaxopt_adam.sgd(container([0.5, falling]))
        updates, state = optimizer.update(params, optimizer.init(params), params)
        updates, _ = optimizer.update(params, state, params)
        np.testing.assert_array_equal(updates[0], [-0.5, -0.5])
        np.testing.assert_allclose(updates[1]["a"], -falling(1), rtol=1e-6)

    @pytest.mark.parametrize(
        "tree",
        [
            {"layer": 0.1},
            {"layer": 0.1, "other": falling},
            {"layer": {"w": 0.1, "b": {"x": 0.1}}, "scale": 0.1},
            [0.1, 0.1],
        ],
        ids=["missing", "other", "deeper", "list"],
    )
    @pytest.mark.parametrize(
        ("rule", "name"),
        [
            ("sgd", "learning_rate"),
            ("adam", "learning_rate"),
            ("lion", "learning_rate"),
            ("adamw", "weight_decay"),
            ("adadelta", "weight_decay"),
        ],
    )
    def test_that_is_no_prefix_of_the_parameters(self, rule, name, tree):
        params = jax.tree.map(jnp.asarray, layered())
        optimizer = make(rule, {"learning_rate": 0.1, name: tree})
        with pytest.raises(ValueError, match=f"{name} must have the tree of the parameters, or a prefix of it"):
            optimizer.update(params, optimizer.init(params), params)

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


class TestCompilation:
    @over(FULL + BARE)
    def test_jitted_update_is_the_eager_one_and_is_traced_once(self, rule, arguments):
        optimizer = make(rule, arguments)
        # Of one sign and ever larger, so that no cancellation enlarges the difference between two orders of rounding.
        gradients = jnp.asarray(np.cumsum(np.abs(noisy_gradients(3)) + 1e-4, 0), jnp.float32)
        params = jnp.asarray(start(), jnp.float32)
        traces = []

        @jax.jit
        def jitted(*inputs):
            traces.append(inputs)
            return optimizer.update(*inputs)

        state = jitted_state = optimizer.init(params)
        for grad in gradients:
            updates, state = optimizer.update(grad, state, params)
            jitted_updates, jitted_state = jitted(grad, jitted_state, params)
            chex.assert_trees_all_close(jitted_updates, updates, rtol=2e-6, atol=0)
        chex.assert_trees_all_close(jitted_state, state, rtol=2e-6, atol=0)
        assert len(traces) == 1

    @over(FULL[:6] + BARE)
    def test_hundred_learning_rates_need_one_trace(self, rule, arguments):
        traces = []

        @jax.jit
        def step(optimizer, params, state):
            traces.append(rule)
            return optimizer.update(params, state, params)

        params = jnp.ones(3)
        kinds = [float, np.float32, np.float64]
        along = make(rule, {**arguments, "learning_rate": None})
        direction, _ = along.update(params, along.init(params), params)
        for index, learning_rate in enumerate(np.geomspace(1e-4, 1, 100)):
            optimizer = make(rule, {**arguments, "learning_rate": kinds[index % 3](learning_rate)})
            updates, _ = step(optimizer, params, optimizer.init(params))
            np.testing.assert_allclose(updates, -learning_rate * direction, rtol=1e-4)
        assert len(traces) == 1
