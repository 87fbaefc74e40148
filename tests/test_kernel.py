"""The kernel, the passes in place and a plain version of a step with moments in codes: the same to the bit."""

import contextlib
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_adam
from jaxopt_adam import abs_sq, ema
from jaxopt_adam.storage import Blockwise
from jaxopt_adam.storage._codes import Quotient, Root
from jaxopt_adam.storage._kernel import in_one_pass, suits
from jaxopt_adam.storage._packing import Member, Packing
from jaxopt_adam.storage._passes import Halves, in_passes
from jaxopt_adam.storage._rounding import ROUNDINGS, phases
from jaxopt_adam.storage._sliding import SlidingRoot

pytestmark = pytest.mark.kernel

DECAY = 0.999
SHAPES = [(64, 128), (3, 3, 32, 48), (4096,), (2, 40, 64)]


def moments_after(inputs, old):
    grad, _, _ = inputs
    mu, nu = old
    # No product in these is fused with a sum, so their bits do not depend on how they are compiled.
    return ema(mu, grad, 0.9), ema(nu, abs_sq(grad), DECAY)


def update(inputs, _, new):
    _, scale, eps = inputs
    mu, nu = new
    return scale * mu / (jnp.sqrt(nu) + eps)


RULE = Halves(moments_after, update)


def _root(bits):
    return SlidingRoot(bits) if bits == 4 else Root(bits)


def leaf(bits, shape, rounding="dither", eps=1e-8, coded=("mu", "nu")):
    """A leaf with codes for both moments, in the same numbers, or for one of them, two in a byte with 4 bits."""
    storage = Blockwise(bits, rounding=rounding)
    members = (
        Member(Quotient(bits) if "mu" in coded else None, np.dtype(np.float32), rounding, 1, eps),
        Member(_root(bits) if "nu" in coded else None, np.dtype(np.float32), rounding, decay=DECAY),
    )
    packing = Packing(members, shape, storage.longest(4096))
    starts = [storage.start(0.0, nonnegative=nonnegative) for nonnegative in (False, True)]
    blocks = packing.layout.blocks
    scales = {
        index: jnp.full(blocks, scale)
        for index, (member, (_, scale)) in enumerate(zip(members, starts, strict=True))
        if member.code
    }
    numbers = {}
    for index, word in enumerate(packing.words):
        if word.bits is None:
            numbers[index] = jnp.zeros(shape)
            continue
        codes = [starts[member][0] for member in word.members] * (2 if word.two_a_byte else 1)
        number = sum(int(code) << bits * place for place, code in enumerate(codes))
        numbers[index] = jnp.full(packing.codes_shape(word), number, np.uint16 if len(coded) * bits == 16 else np.uint8)
    return packing, numbers, scales


def gradients(shape, steps=4):
    generator = np.random.default_rng(0)
    size = np.exp(generator.standard_normal(shape))
    return [(size * generator.standard_normal(shape)).astype(np.float32) for _ in range(steps)]


def walk(step, shape, packing, numbers, scales):
    step = jax.jit(functools.partial(step, RULE, packing=packing))
    updates = []
    for count, grad in enumerate(gradients(shape), 1):
        inputs = grad, jnp.float32(-0.01), jnp.float32(1e-8)
        update, numbers, scales = step(inputs, numbers, scales, step=jnp.int32(count))
        updates.append(update)
    return updates, numbers, scales


def positive(over):
    return jnp.where(over > 0, over, 1)


def plainly(rule, inputs, numbers, scales, packing, step):
    """Decode, rule, encode, decode, rule: with every array in full, and the layout of the codes undone by hand."""
    how_mu, how_nu = packing.members
    layout = packing.layout
    bits = (how_mu.code or how_nu.code).bits
    both = how_mu.code is not None and how_nu.code is not None
    # Two moments in codes share the numbers of the only word; otherwise each has its own.
    place = {0: 0, 1: 0 if both else 1}

    def rows(array):
        return jnp.asarray(array).reshape(-1, layout.length)

    def codes_of(numbers, index):
        if both:
            return jnp.divmod(rows(numbers[0]).astype(jnp.int32), 2**bits)[index]
        if bits == 8:
            return rows(numbers[place[index]]).astype(jnp.int32)
        own = numbers[place[index]].reshape(-1, layout.length // 2).astype(jnp.int32)
        return jnp.concatenate([own & 15, own >> 4], axis=1)

    def decoded(numbers, scales):
        if how_nu.code is None:
            nu = rows(numbers[place[1]])
            root = jnp.sqrt(nu)
        else:
            grid = how_nu.code.grid(scales[1].reshape(-1, 1))
            root = how_nu.code.root(codes_of(numbers, 1), grid)
            nu = how_nu.code.decode(codes_of(numbers, 1), None, grid)
        if how_mu.code is None:
            return [rows(numbers[place[0]]), nu]
        grid = how_mu.code.grid(scales[0].reshape(-1, 1))
        return [how_mu.code.decode(codes_of(numbers, 0), positive(root + how_mu.eps), grid), nu]

    grad, scale, eps = inputs
    mu, nu = rule.first((rows(grad), scale, eps), decoded(numbers, scales))
    codes, new_scales = {}, {}
    overs = positive(jnp.sqrt(nu) + how_mu.eps), None
    for salt, (value, over, how) in enumerate(zip((mu, nu), overs, packing.members, strict=True)):
        if how.code is None:
            continue
        largest = [jnp.max(each, axis=1, keepdims=True) for each in how.code.measures(value, over)]
        before = scales[salt].reshape(-1, 1)
        places = phases(layout.positions, salt)
        along = [each.reshape(-1, *[1] * (len(places) - 1 - axis)) for axis, each in enumerate(places)]
        where = jnp.broadcast_to(sum(along), layout.positions).reshape(-1, layout.length)
        threshold = ROUNDINGS[how.rounding](step, [where])
        if isinstance(how.code, SlidingRoot):
            # The phase of a block is that of its elements, but for their positions in it.
            of_block = jnp.broadcast_to(sum(each[..., 0] for each in along[:-1]), layout.blocks).reshape(-1, 1)
            decay = np.float32(how.decay)
            slid = how.code.slid(before, decay, ROUNDINGS[how.rounding](step, [of_block]), *largest)
            of_rows = slid.astype(np.uint16)
            ruler = how.code.aimed(how.code.grid(of_rows), how.code.grid(before), slid, decay)
        else:
            of_rows = how.code.scale(before, *largest)
            ruler = how.code.ruler(how.code.grid(of_rows))
        codes[salt] = how.code.encode(value, over, ruler, threshold)
        new_scales[salt] = of_rows.reshape(layout.blocks)
    new_numbers = {place[0]: mu.reshape(layout.shape), place[1]: nu.reshape(layout.shape)}
    for index in codes:
        own = codes[1] + codes[0] * 2**bits if both else codes[index]
        if not both and bits == 4:
            own = own[:, : layout.length // 2] + own[:, layout.length // 2 :] * 16
        like = numbers[place[index]]
        new_numbers[place[index]] = own.astype(like.dtype).reshape(like.shape)
    stored = decoded(new_numbers, new_scales)
    update = scale * stored[0] / (jnp.sqrt(stored[1]) + eps)
    return update.reshape(layout.shape), new_numbers, new_scales


def assert_same(one, other, packing):
    """Codes and scales to the bit; of what is stored in float32 sums of products may be fused with more or less."""
    jax.tree.map(np.testing.assert_array_equal, one[2], other[2])
    for index, word in enumerate(packing.words):
        if word.bits is not None:
            np.testing.assert_array_equal(one[1][index], other[1][index])
        else:
            np.testing.assert_allclose(one[1][index], other[1][index], rtol=3e-7, atol=1e-6)


def agree(shape, bits, rounding="dither", eps=1e-8, coded=("mu", "nu")):
    packing, *state = leaf(bits, shape, rounding, eps, coded)
    ours = walk(in_passes, shape, packing, *state)
    plain = walk(plainly, shape, packing, *state)
    assert_same(ours, plain, packing)
    # The last division may be fused otherwise too; where the sums cancel their last bits are more of the update.
    atol = 0 if len(coded) == 2 else 1e-8
    close = functools.partial(np.testing.assert_allclose, rtol=3e-7, atol=atol)
    jax.tree.map(close, ours[0], plain[0])
    if not suits(packing.layout):
        assert shape == (3, 3, 32, 48)
        return
    kernel = walk(in_one_pass, shape, packing, *state)
    assert_same(ours, kernel, packing)
    jax.tree.map(close if atol else np.testing.assert_array_equal, ours[0], kernel[0])


@pytest.mark.parametrize(
    ("shape", "rounding"),
    [
        *((shape, "dither") for shape in SHAPES),
        *((SHAPES[-1], rounding) for rounding in ROUNDINGS if rounding != "dither"),
    ],
    ids=str,
)
@pytest.mark.parametrize("bits", [8, 4])
def test_three_versions_agree_to_the_bit(shape, rounding, bits):
    agree(shape, bits, rounding)


@pytest.mark.parametrize("eps", [0.0, 1e-2, jnp.float32(1e-2)], ids=["none", "number", "array"])
@pytest.mark.parametrize("bits", [8, 4])
def test_three_versions_agree_with_any_eps(bits, eps):
    agree((16, 64), bits, eps=eps)


@pytest.mark.parametrize("coded", ["mu", "nu"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(64, 128), (3, 3, 32, 48)], ids=str)
def test_three_versions_agree_with_one_moment_in_codes(shape, bits, coded):
    agree(shape, bits, coded=(coded,))


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


def a_gpu():
    """A context in which programs are lowered for a GPU without there being one; JAX 0.11 and later ask for which."""
    if jax.__version_info__ < (0, 11):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


# So JAX says from 0.11 on to those who lower the kernel; see the documentation of Blockwise.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize("bits", [8, 4])
def test_kernel_is_lowered_for_cuda(bits):
    packing, numbers, scales = leaf(bits, (256, 512))

    def step(grad, numbers, scales, count):
        inputs = grad, jnp.float32(-0.01), jnp.float32(1e-8)
        return in_one_pass(RULE, inputs, numbers, scales, packing, count)

    given = jnp.zeros(packing.shape), numbers, scales, jnp.int32(1)
    with a_gpu():
        assert "triton" in jax.jit(step).trace(*given).lower(lowering_platforms=("cuda",)).as_text()
    assert "triton" not in jax.jit(step).trace(*given).lower(lowering_platforms=("cpu",)).as_text()


def test_kernel_is_for_those_who_ask():
    params = jnp.zeros((64, 128))

    def uses_pallas(implementation):
        made = jaxopt_adam.adam(0.1, moments=Blockwise(8, implementation=implementation))
        return "pallas_call" in str(jax.make_jaxpr(made.update)(params, jax.eval_shape(made.init, params)))

    assert [uses_pallas(each) for each in ("auto", "xla", "pallas")] == [False, False, True]


def test_pallas_is_imported_where_it_is_used():
    """Neither by the import of the library nor by a step without the kernel; and there are JAXs without it."""
    subprocess.run(
        [
            sys.executable,
            "-c",
            """
import sys
import jax.numpy as jnp
import jaxopt_adam
from jaxopt_adam import abs_sq, ema
from jaxopt_adam.storage import Blockwise

assert not [name for name in sys.modules if name.startswith("jax.experimental.pallas")]
sys.modules["jax.experimental.pallas.triton"] = None
params = jnp.zeros((64, 128))
for implementation in ("auto", "pallas"):
    made = jaxopt_adam.adam(0.1, moments=Blockwise(8, implementation=implementation))
    try:
        made.update(params, made.init(params))
    except ImportError as error:
        assert implementation == "pallas"
        assert 'implementation="pallas" needs Pallas with its Triton backend' in str(error), error
    else:
        assert implementation == "auto"
""",
        ],
        check=True,
    )
