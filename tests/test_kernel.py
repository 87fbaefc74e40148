"""The kernel, the passes in place and a plain version of a step with moments in codes: the same to the bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_adam
from jaxopt_adam.in_place import Kept, in_place
from jaxopt_adam.kernel import in_one_pass, suits
from jaxopt_adam.storage import ROUNDINGS, Blocks, Blockwise, Layout, Quotient, Root, block_length, phases

SHAPES = [(64, 128), (3, 3, 32, 48), (4096,), (2, 40, 64)]


def rule(inputs, moments):
    grad, scale, eps = inputs
    mu, nu = moments
    mu = 0.9 * mu + 0.1 * grad
    nu = 0.999 * nu + 0.001 * grad * grad
    return scale * mu / (jnp.sqrt(nu) + eps), mu, nu


def leaf(bits, shape, rounding="dither", eps=1e-8):
    storage = Blockwise(bits, rounding=rounding)
    layout = Layout(shape, block_length(shape[-1], storage.longest(4096)), 8 // bits)
    kept = [Kept(Quotient(bits), None, 1, eps, rounding), Kept(Root(bits), None, rounding=rounding)]
    resting = []
    for nonnegative in (False, True):
        byte, scale = storage.start(0.0, nonnegative=nonnegative)
        resting.append(Blocks(jnp.full(layout.codes_shape(bits), byte), jnp.full(layout.blocks, scale)))
    return layout, kept, resting


def gradients(shape, steps=4):
    generator = np.random.default_rng(0)
    size = np.exp(generator.standard_normal(shape))
    return [(size * generator.standard_normal(shape)).astype(np.float32) for _ in range(steps)]


def walk(step, shape, resting, layout, kept):
    step = jax.jit(functools.partial(step, rule, kept=kept, layout=layout))
    updates = []
    for count, grad in enumerate(gradients(shape), 1):
        update, resting = step((grad, jnp.float32(-0.01), jnp.float32(1e-8)), resting, step=jnp.int32(count))
        updates.append(update)
    return updates, resting


def positive(over):
    return jnp.where(over > 0, over, 1)


def plainly(rule, inputs, resting, kept, layout, step):
    """Decode, rule, encode, decode, rule: with every array in full, and the layout of the codes undone by hand."""

    def rows(array):
        return jnp.asarray(array).reshape(-1, layout.length)

    def codes_of(value, bits):
        if bits == 8:
            return rows(value.codes).astype(jnp.int32)
        bytes_ = value.codes.reshape(-1, layout.length // 2).astype(jnp.int32)
        return jnp.concatenate([bytes_ & 15, bytes_ >> 4], axis=1)

    def decoded(resting):
        (mu, nu), (how_mu, how_nu) = resting, kept
        grid = how_nu.code.grid(nu.scales.reshape(-1, 1))
        codes = codes_of(nu, how_nu.code.bits)
        over = positive(how_nu.code.root(codes, grid) + how_mu.eps)
        grid_mu = how_mu.code.grid(mu.scales.reshape(-1, 1))
        decoded_mu = how_mu.code.decode(codes_of(mu, how_mu.code.bits), over, grid_mu)
        return [decoded_mu, how_nu.code.decode(codes, None, grid)]

    grad, scale, eps = inputs
    _, mu, nu = rule((rows(grad), scale, eps), decoded(resting))
    after = []
    for salt, (value, over, how) in enumerate(
        [(mu, positive(jnp.sqrt(nu) + kept[0].eps), kept[0]), (nu, None, kept[1])]
    ):
        largest = [jnp.max(each, axis=1, keepdims=True) for each in how.code.measures(value, over)]
        scales = how.code.scale(resting[salt].scales.reshape(-1, 1), *largest)
        places = phases(layout.positions, salt)
        along = [each.reshape(-1, *[1] * (len(places) - 1 - axis)) for axis, each in enumerate(places)]
        where = jnp.broadcast_to(sum(along), layout.positions).reshape(-1, layout.length)
        threshold = ROUNDINGS[how.rounding](step, [where])
        codes = how.code.encode(value, over, how.code.grid(scales), threshold)
        if how.code.bits == 4:
            codes = codes[:, : layout.length // 2] | codes[:, layout.length // 2 :] << 4
        codes = codes.astype(jnp.uint8).reshape(layout.codes_shape(how.code.bits))
        after.append(Blocks(codes, scales.reshape(layout.blocks)))
    rested = decoded(after)
    update = scale * rested[0] / (jnp.sqrt(rested[1]) + eps)
    return update.reshape(layout.shape), after


def agree(shape, bits, rounding, eps):
    layout, kept, resting = leaf(bits, shape, rounding, eps)
    start = (shape, resting, layout, kept)
    ours = walk(in_place, *start)
    plain = walk(plainly, *start)
    jax.tree.map(np.testing.assert_array_equal, ours[1], plain[1])
    # The last division may be fused with more or less beside it.
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=3e-7), ours[0], plain[0])
    if suits(layout):
        jax.tree.map(np.testing.assert_array_equal, ours, walk(in_one_pass, *start))
    else:
        assert shape == (3, 3, 32, 48)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_three_versions_agree_to_the_bit(shape, bits, rounding):
    agree(shape, bits, rounding, 1e-8)


@pytest.mark.parametrize("eps", [0.0, 1e-2, jnp.float32(1e-2)], ids=["none", "number", "array"])
@pytest.mark.parametrize("bits", [8, 4])
def test_three_versions_agree_with_any_eps(bits, eps):
    agree((16, 64), bits, "dither", eps)


@pytest.mark.parametrize(
    "moments", [lambda storage: storage, lambda storage: {"mu": "bfloat16", "nu": storage}], ids=["both", "nu"]
)
@pytest.mark.parametrize("bits", [8, 4])
def test_kernel_and_passes_agree_within_an_optimizer(bits, moments):
    shape = (64, 128)
    params = {"w": jnp.asarray(gradients(shape, 1)[0]), "b": jnp.ones(7)}

    def run(implementation):
        storage = Blockwise(bits, implementation=implementation)
        optimizer = jaxopt_adam.adamw(0.01, weight_decay=0.1, moments=moments(storage))

        @jax.jit
        def step(params, state, grads):
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        own, state = params, optimizer.init(params)
        for grad in gradients(shape):
            own, state = step(own, state, {"w": grad, "b": jnp.full(7, 0.1)})
        return own, state

    jax.tree.map(np.testing.assert_array_equal, run("xla"), run("pallas"))


def test_kernel_of_a_batch_of_optimizers():
    shape, rates = (64, 128), jnp.array([0.01, 0.1])
    grad = jnp.asarray(gradients(shape, 1)[0])

    def once(rate):
        optimizer = jaxopt_adam.adam(rate, moments=Blockwise(8, implementation="pallas"))
        return optimizer.update(grad, optimizer.init(grad))[0]

    together = jax.jit(jax.vmap(once))(rates)
    np.testing.assert_allclose(together, jnp.stack([once(rate) for rate in rates]), rtol=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
def test_kernel_is_lowered_for_cuda(bits):
    layout, kept, resting = leaf(bits, (256, 512))

    def step(grad, resting, count):
        inputs = grad, jnp.float32(-0.01), jnp.float32(1e-8)
        return in_one_pass(rule, inputs, resting, kept, layout, count, elsewhere=in_place)

    traced = jax.jit(step).trace(jnp.zeros(layout.shape), resting, jnp.int32(1))
    assert "triton" in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "triton" not in traced.lower(lowering_platforms=("cpu",)).as_text()
