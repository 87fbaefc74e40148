"""SOAP on gradients that do not have full rank, and on those that are too large to be squared."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import library_updates, scan_updates
from compiling import AS_USERS_DO
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import walk
from oracles.soap import Soap

from jaxopt_adam import muon, soap
from jaxopt_adam.rules._matrices import bounded

# Nearly all the time is the compilation of the walk, for each shape and number of walks and of steps: with few of them
# the tests share the programs.
STEPS = 200
PROBLEMS = 23
RATE = 0.1
MOST = 4 * RATE  # of an update's root mean square, by the rule's documentation


@functools.partial(jax.jit, compiler_options=AS_USERS_DO)
def sizes_of(optimizer, gradients):
    def of_one(gradients):
        updates, _ = scan_updates(optimizer, jnp.zeros_like(gradients[0]), gradients, moving=False)
        return jnp.sqrt(jnp.mean(updates**2, range(1, updates.ndim)))

    return jax.vmap(of_one)(gradients)


def sizes(optimizer, gradients):
    """The root mean square of each update, for a batch of walks."""
    number = max(len(gradients), PROBLEMS) if gradients.shape[-1] < 64 else len(gradients)
    repeated = np.resize(gradients, (number, *gradients.shape[1:]))
    return np.asarray(sizes_of(optimizer, repeated))[: len(gradients)]


class Problem:
    """A drawn walk: a rank and a scale for each quarter, noise from step to step, and perhaps tied rows."""

    def __init__(self, seed, ranks, scales, noise, tied):
        self.seed, self.ranks, self.scales, self.noise, self.tied = seed, ranks, scales, noise, tied

    def __repr__(self):
        return f"Problem({self.seed}, {self.ranks}, {self.scales}, {self.noise}, {self.tied})"

    def gradients(self, shape):
        generator = np.random.default_rng(self.seed)
        rows, columns = shape[0], int(np.prod(shape[1:]))
        full = min(rows, columns)
        left, right = generator.normal(size=(rows, full)), generator.normal(size=(full, columns))
        if self.tied:
            left = left[np.arange(rows) // 2]
        quarter = np.arange(STEPS) * len(self.ranks) // STEPS
        used = np.arange(full) < np.round(np.float64(self.ranks) * full)[quarter, None]
        inner = generator.normal(size=(full, full)) + self.noise * generator.normal(size=(STEPS, full, full))
        inner = inner * used[:, None] * used[..., None] * 10.0 ** np.float64(self.scales)[quarter, None, None]
        return np.float32((left @ inner @ right).reshape(STEPS, *shape))


def quarters(strategy):
    return st.lists(strategy, min_size=4, max_size=4)


SCALES = st.floats(-12, 12)
PROBLEM = st.builds(
    Problem,
    seed=st.integers(0, 2**32 - 1),
    ranks=quarters(st.floats(0, 1)),
    scales=SCALES.map(lambda scale: [scale] * 4) | quarters(SCALES),
    noise=st.sampled_from([0.0, 0.1, 1.0]),
    tied=st.booleans(),
)
OPTIONS = {"learning_rate": RATE, "weight_decay": 0.0, "eps": 0.0}


class TestBound:
    """On 500 problems in all, by hypothesis."""

    @pytest.mark.parametrize(
        ("shape", "options"),
        [
            ((4, 4), {"precondition_frequency": 1}),
            ((8, 5), {}),
            ((2, 3, 4), {"precondition_frequency": 1}),
            ((3, 1, 2, 5), {"shampoo_decay": 0.5}),
            ((6, 20), {"max_precond_dim": 10, "sort_by_eigenvalue": True}),
            ((64, 64), {}),
        ],
        ids=str,
    )
    def test_no_update_is_longer_and_none_is_nan(self, shape, options):
        optimizer, number = soap(**OPTIONS, **options), 10 if 64 in shape else PROBLEMS

        @settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(PROBLEM, min_size=number, max_size=number))
        def check(problems):
            found = sizes(optimizer, np.stack([problem.gradients(shape) for problem in problems]))
            assert np.all(found <= MOST * (1 + 1e-5)), found.max(1)

        check()

    def test_rank_one_that_does_not_change(self):
        scales = np.float32([1e-12, 1e-6, 1e-3, 1, 1e3, 1e6, 1e12])
        gradients = np.ones((STEPS, 4, 4), np.float32) * scales[:, None, None, None]
        found = sizes(soap(**OPTIONS, precondition_frequency=1), gradients)
        np.testing.assert_array_equal(found[:, 0], 0)  # the first gradient only makes the bases
        np.testing.assert_allclose(found[:, 1:], RATE / 4, rtol=0.01)  # one element of the bases moves, by the rate

    def test_rank_one_that_grows(self):
        generator = np.random.default_rng(0)
        sides = generator.normal(size=(PROBLEMS, 1, 8, 1)), generator.normal(size=(PROBLEMS, 1, 1, 5))
        gradients = np.float32(sides[0] * sides[1] * 1.1 ** np.arange(STEPS)[:, None, None])
        found = sizes(soap(**OPTIONS), gradients)
        assert found.max() <= 1.02 * RATE / 40**0.5  # of one element that moves by the rate

    def test_full_rank_where_the_bases_move_at_once(self):
        # The first second moments are from one gradient each, and the bases move under them.
        generator = np.random.default_rng(0)
        steps = 10.0 ** generator.uniform(-2, 1, (PROBLEMS, STEPS, 1, 1))
        gradients = generator.normal(size=(PROBLEMS, STEPS, 4, 4)) + generator.normal(size=(PROBLEMS, 1, 4, 4))
        found = sizes(soap(**OPTIONS, precondition_frequency=1), np.float32(gradients * steps))
        assert found.max() <= MOST * (1 + 1e-5)
        assert found.max() > 0.9 * MOST  # so that the bound is met

    def test_scale_of_the_gradients_does_not_matter(self):
        problems = [Problem(seed, [0.3, 1, 0.5, 0], [0] * 4, 0.1, seed % 2 == 0) for seed in range(PROBLEMS)]
        optimizer, gradients = soap(**OPTIONS), np.stack([problem.gradients((8, 5)) for problem in problems])
        middle = sizes(optimizer, gradients)
        for scale in (2.0**-20, 2.0**20, 2.0**40):
            np.testing.assert_array_equal(sizes(optimizer, np.float32(gradients * scale)), middle)
        # The squares of the smallest elements are below float32's least normal number here.
        np.testing.assert_allclose(sizes(optimizer, np.float32(gradients * 2.0**-40)), middle, rtol=0.02)


def embedded(kind, size, rank, generator):
    """Orthonormal columns: the few directions of a long axis that a gradient has."""
    if kind == "dead units":
        return np.eye(size)[:, generator.permutation(size)[:rank]]
    if kind == "tied":
        groups = np.eye(rank)[np.arange(size) % rank]
        return groups / np.linalg.norm(groups, axis=0)
    return np.linalg.qr(generator.normal(size=(size, rank)))[0]


def embedded_walk(kind, shape, rank):
    """Gradients of a rank, and what SOAP makes of them: what its oracle makes of the small matrices within."""
    generator = np.random.default_rng([*shape, rank])
    left, right = (embedded(kind, size, rank, generator) for size in shape)
    drift = np.diag(2.0 + 2 * np.arange(rank)) + 0.5 * generator.normal(size=(rank, rank))
    small = drift + 0.3 * generator.normal(size=(100, rank, rank))
    inner, _ = walk(Soap(RATE, weight_decay=0.0), np.zeros((rank, rank)), small)
    return left @ small @ right.T, left @ inner @ right.T


class TestDirectionsWithoutGradient:
    """They take no part in the update, and change nothing in the others."""

    @pytest.mark.parametrize(("shape", "rank"), [((8, 5), 1), ((16, 12), 3)])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_update_is_that_of_the_small_matrix(self, dtype, shape, rank):
        with jax.enable_x64(dtype == "float64"):
            gradients, right = zip(
                *(embedded_walk(k, shape, rank) for k in ("dense", "dead units", "tied")), strict=True
            )
            run = jax.jit(jax.vmap(functools.partial(scan_updates, soap(RATE, weight_decay=0.0), moving=False)))
            gradients = np.stack(gradients).astype(dtype)
            updates = np.asarray(run(np.zeros_like(gradients[:, 0]), gradients)[0])
        assert updates.dtype == dtype
        apart = np.linalg.norm(updates - np.stack(right), axis=(2, 3))
        tolerance = 0.1 if dtype == "float32" else 1e-6
        assert (apart <= tolerance * np.linalg.norm(right, axis=(2, 3))).all(), apart.max()

    def test_dead_units_do_not_move(self):
        gradients = np.random.default_rng(0).normal(size=(60, 6, 4)).astype(np.float32)
        gradients[:, 1::2] = 0
        updates, _ = library_updates(soap(RATE, weight_decay=0.0), np.ones((6, 4), np.float32), gradients)
        assert np.abs(np.asarray(updates)[:, 1::2]).max() <= 0.01 * RATE

    @pytest.mark.usefixtures("x64")
    def test_small_elements_of_a_full_rank_stay(self):
        generator = np.random.default_rng(0)
        gradients = generator.normal(size=(60, 4, 4)) * 10.0 ** -np.arange(4)
        updates, _ = library_updates(soap(**OPTIONS), np.zeros((4, 4)), gradients)
        right, _ = walk(Soap(**OPTIONS), np.zeros((4, 4)), gradients)
        np.testing.assert_allclose(updates, right, rtol=0, atol=1e-10 * RATE)


def first_step(optimizer, grad):
    return optimizer.update(grad, optimizer.init(grad), grad)[0]


class TestAbsurdGradients:
    @pytest.mark.parametrize("shape", [(4, 4), (2, 3, 4)])
    def test_averages_forget_them(self, shape):
        gradients = np.random.default_rng(0).normal(size=(3, STEPS, *shape)).astype(np.float32)
        gradients[0, 10:12] *= 1e19
        gradients[1, 10:12] *= 1e25
        gradients[2, 10:12] = np.finfo(np.float32).max
        found = sizes(soap(RATE, b1=0.5, b2=0.5, weight_decay=0.0, precondition_frequency=1), gradients)
        assert np.isfinite(found).all()
        assert (found <= MOST * (1 + 1e-5)).all()
        assert (found[:, -20:].mean(1) >= 0.3 * RATE).all()

    @pytest.mark.parametrize("preconditioning", ["frobenius", "spectral", "aol", "schatten"])
    def test_muon_takes_nearly_the_largest_numbers(self, preconditioning):
        matrix = np.float32(np.random.default_rng(0).normal(size=(4, 4)))
        matrix = matrix / np.abs(matrix).max()
        step = jax.jit(lambda grad: first_step(muon(0.1, preconditioning=preconditioning), grad))
        for scale in (1e37, 2e38):
            np.testing.assert_allclose(step(np.float32(scale) * matrix), step(matrix), rtol=1e-3, atol=1e-5)

    def test_bounded(self):
        largest = np.finfo(np.float32).max
        jitted = jax.jit(bounded)
        for scale in (1e-37, 1e-30, 1, 1e18):
            tensor = np.full((4, 4), scale, np.float32)
            np.testing.assert_array_equal(jitted(tensor), tensor)
        for tensor in (
            np.full((4, 4), largest),
            np.full((400, 4), 1e19, np.float32),
            np.diag(np.float32([0, largest, 0, 0])),
        ):
            whole, scaled = np.float64(tensor), np.float64(jitted(tensor))
            np.testing.assert_allclose(scaled / scaled.max(), whole / whole.max(), rtol=1e-5)
            np.testing.assert_allclose(np.sum(scaled**2), float(largest) / 4, rtol=1e-5)
        for value in (np.inf, -np.inf, np.nan):
            tensor = np.float32([1, value, 1])
            np.testing.assert_array_equal(jitted(tensor), tensor)
