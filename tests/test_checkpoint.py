"""Checkpoints: saved and resumed on other devices, after a kill, and refused with the reason where they do not fit."""

import json
import multiprocessing
import os
import random
import shutil
import socket
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import resumable
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxopt_adam import abstract_state, adam, adamw, chain, laprop, lion, optimizer, schedules
from jaxopt_adam._whole_files import sealed, unsealed
from jaxopt_adam.checkpoint import Checkpoints
from jaxopt_adam.lifted import clip_by_global_norm

pytestmark = pytest.mark.clients

RECORD = "jaxopt_adam.json"
OPTIMIZER = adamw(1e-3, moments="int8")


def placed(optimizer=OPTIMIZER, shape=(64, 128), axis="data"):
    """Parameters and a state on eight devices, as a tree to save."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    params = {
        "w": jax.device_put(
            jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape), NamedSharding(mesh, spec(axis))
        ),
        "b": jax.device_put(jnp.ones(shape[1], jnp.bfloat16), NamedSharding(mesh, spec())),
    }
    return {"params": params, "state": optimizer.init(params)}


def spec(*axes):
    return PartitionSpec(*axes)


def assert_identical(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for one, another in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert type(one) is type(another)
        if hasattr(one, "dtype"):
            assert one.dtype == another.dtype
        if isinstance(one, jax.Array):
            assert one.sharding.is_equivalent_to(another.sharding, one.ndim)
            if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
                one, another = jax.random.key_data(one), jax.random.key_data(another)
        np.testing.assert_array_equal(np.asarray(one), np.asarray(another))


def restored(folder, optimizer=OPTIMIZER, like=None, **options):
    with Checkpoints(folder, optimizer) as checkpoints:
        return checkpoints.restore(placed(optimizer) if like is None else like, **options)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with two steps, 10 and 20, for reading only."""
    folder = tmp_path_factory.mktemp("written") / "checkpoints"
    tree = placed()
    with Checkpoints(folder, OPTIMIZER) as checkpoints:
        checkpoints.save(10, tree)
        checkpoints.save(20, jax.tree.map(lambda leaf: leaf + 1, tree))
    return folder


class TestSave:
    def test_each_kind_of_leaf_comes_back(self, tmp_path):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
        whole = NamedSharding(mesh, spec())
        tree = {
            "key": jax.device_put(jax.random.key(3), whole),
            "keys": jax.device_put(jax.random.split(jax.random.key(3), 8), NamedSharding(mesh, spec("data"))),
            "empty": jax.device_put(jnp.zeros((0, 3), jnp.int8), whole),
            "nothing": None,
            "host": np.arange(5),
            "scalar": np.float32(2.5),
            "half": jax.device_put(jnp.arange(4, dtype=jnp.float8_e4m3fn), whole),
            "complex": jax.device_put(jnp.array([1j, 2]), whole),
            "numbers": (3, 2.5, True, "text", ""),
            "states": [optax.EmptyState(), {}, optax.TraceState({"a.b": jax.device_put(jnp.ones(3), whole)})],
        }
        with Checkpoints(tmp_path, None) as checkpoints:
            checkpoints.save(0, tree)
            resumed = checkpoints.restore(tree)
        assert resumed.step == 0
        assert_identical(resumed.tree, tree)

    def test_orbax_reads_it_alone(self, written):
        found = ocp.PyTreeCheckpointer().restore(
            written / "20",
            restore_args={
                "params": {
                    "w": ocp.RestoreArgs(restore_type=np.ndarray),
                    "b": ocp.RestoreArgs(restore_type=np.ndarray),
                },
                "state": {
                    "count": ocp.RestoreArgs(restore_type=np.ndarray),
                    "mu": {
                        "w": ocp.RestoreArgs(restore_type=np.ndarray),
                        "b": ocp.RestoreArgs(restore_type=np.ndarray),
                    },
                    "nu": {
                        "w": ocp.RestoreArgs(restore_type=np.ndarray),
                        "b": ocp.RestoreArgs(restore_type=np.ndarray),
                    },
                },
            },
        )
        np.testing.assert_array_equal(found["params"]["w"], np.asarray(placed()["params"]["w"]) + 1)

    def test_arrays_may_be_donated_and_changed_at_once(self, tmp_path):
        array, host = jnp.arange(4_000_000.0), np.arange(4_000_000.0)
        like = {"array": array + 0, "host": host.copy()}
        add = jax.jit(lambda array: array + 1, donate_argnums=0)
        with Checkpoints(tmp_path, OPTIMIZER) as checkpoints:
            checkpoints.save(1, {"array": array, "host": host})
            for _ in range(3):
                array = add(array)
                host += 1
            assert_identical(checkpoints.restore(like).tree, like)

    def test_the_newest_are_kept(self, tmp_path):
        with Checkpoints(tmp_path, OPTIMIZER, keep=2) as checkpoints:
            for step in (1, 5, 20, 100):
                checkpoints.save(step, {"a": jnp.ones(3) * step})
        assert sorted(each.name for each in tmp_path.iterdir()) == ["100", "20", RECORD]
        assert restored(tmp_path, like={"a": jnp.ones(3)}).tree["a"][0] == 100

    def test_what_was_not_finished_is_deleted_by_the_next_save(self, tmp_path):
        (tmp_path / "5.orbax-checkpoint-tmp").mkdir()
        with Checkpoints(tmp_path, OPTIMIZER) as checkpoints:
            assert checkpoints.restore({"a": jnp.ones(3)}) is None
            assert (tmp_path / "5.orbax-checkpoint-tmp").exists()
            checkpoints.save(5, {"a": jnp.ones(3)})
        assert sorted(each.name for each in tmp_path.iterdir()) == ["5", RECORD]

    @pytest.mark.parametrize("step", [20, 3])
    def test_an_older_step_is_refused(self, written, step):
        with (
            Checkpoints(written, OPTIMIZER) as checkpoints,
            pytest.raises(ValueError, match=f"step must be larger than 20, the newest in .*, got {step}; restore it"),
        ):
            checkpoints.save(step, placed())

    @pytest.mark.parametrize(
        ("tree", "error", "text"),
        [
            ({"a": {"b": object()}}, TypeError, r"leaf \['a'\]\['b'\] must be an array, .* got object"),
            ({"a.b": jnp.ones(2), "a": {"b": jnp.ones(2)}}, ValueError, "would both be written as 'a.b'"),
            (jnp.ones(2), ValueError, "must be a container of arrays"),
            ({"a": jnp.ones(0)}, ValueError, "at least one array that is not empty"),
        ],
        ids=["kind", "names", "leaf", "empty"],
    )
    def test_a_tree_that_cannot_be_saved(self, tmp_path, tree, error, text):
        with Checkpoints(tmp_path / "new", OPTIMIZER) as checkpoints, pytest.raises(error, match=text):
            checkpoints.save(1, tree)
        assert not (tmp_path / "new").exists()

    def test_a_negative_step(self, tmp_path):
        with Checkpoints(tmp_path, OPTIMIZER) as checkpoints, pytest.raises(ValueError, match="must not be negative"):
            checkpoints.save(-1, {"a": jnp.ones(2)})

    def test_what_fails_in_the_background_is_raised_by_the_next_call(self, tmp_path, monkeypatch):
        checkpoints = Checkpoints(tmp_path, OPTIMIZER)
        monkeypatch.setattr("jaxopt_adam.checkpoint.checksums", lambda *_: 1 / 0)
        checkpoints.save(1, {"a": jnp.ones(2)})
        with pytest.raises(ZeroDivisionError):
            checkpoints.wait()
        checkpoints.save(2, {"a": jnp.ones(2)})
        with pytest.raises(ZeroDivisionError):
            checkpoints.close()

    def test_whole_numbers(self, tmp_path):
        with pytest.raises(TypeError, match=r"keep must be an integer, got 2.0 \(float\)"):
            Checkpoints(tmp_path, OPTIMIZER, keep=2.0)
        with Checkpoints(tmp_path, OPTIMIZER) as checkpoints, pytest.raises(TypeError, match="step must be an integer"):
            checkpoints.save("1", {"a": jnp.ones(2)})

    def test_keep(self, tmp_path):
        with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
            Checkpoints(tmp_path, OPTIMIZER, keep=0)


class TestRestore:
    def test_nothing_yet(self, tmp_path):
        assert restored(tmp_path / "new") is None
        assert not (tmp_path / "new").exists()

    def test_the_newest(self, written):
        resumed = restored(written)
        assert (resumed.step, resumed.optimizer, dict(resumed.skipped)) == (20, OPTIMIZER, {})
        assert_identical(resumed.tree, jax.tree.map(lambda leaf: leaf + 1, placed()))

    @pytest.mark.parametrize(("shape", "axis"), [((4,), "data"), ((2,), None), ((8,), None)])
    def test_onto_other_devices(self, written, shape, axis):
        mesh = jax.make_mesh(shape, ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[: shape[0]])
        params = {
            "w": jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=NamedSharding(mesh, spec(None, axis))),
            "b": jax.ShapeDtypeStruct((128,), jnp.bfloat16, sharding=NamedSharding(mesh, spec())),
        }
        like = {"params": params, "state": abstract_state(OPTIMIZER, params)}
        found = restored(written, like=like).tree
        want = jax.tree.map(lambda leaf, to: jax.device_put(np.asarray(leaf) + 1, to.sharding), placed(), like)
        assert_identical(found, want)

    def test_a_leaf_without_a_sharding(self, written):
        like = placed() | {"params": jax.eval_shape(lambda: placed()["params"])}
        with pytest.raises(TypeError, match=r"leaf \['params'\]\['b'\] must have a sharding, .*; give an array"):
            restored(written, like=jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like))

    def test_an_earlier_one_from_which_the_training_goes_on(self, written, tmp_path):
        folder = tmp_path / "copy"
        shutil.copytree(written, folder)
        with Checkpoints(folder, OPTIMIZER) as checkpoints:
            resumed = checkpoints.restore(placed(), step=10)
            assert resumed is not None
            assert (resumed.step, dict(resumed.skipped)) == (10, {})
            assert_identical(resumed.tree, placed())
            assert (folder / "20").exists()  # until something is saved
            checkpoints.save(15, resumed.tree)
            checkpoints.wait()
        assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["10", "15"]

    def test_a_step_that_is_not_there_or_not_whole(self, written, tmp_path):
        with pytest.raises(ValueError, match=r"restore: step must be one of those in .*, 10, 20; got 15"):
            restored(written, step=15)
        with pytest.raises(TypeError, match="restore: step must be an integer, got 'last'"):
            restored(written, step="last")
        folder = tmp_path / "copy"
        shutil.copytree(written, folder)
        (folder / "20" / RECORD).unlink()
        with pytest.raises(ValueError, match=r"restore: step 20 in .* is not whole: 20: .* is missing"):
            restored(folder, step=20)

    def test_a_word_for_numbers(self, written):
        with pytest.raises(ValueError, match="numbers must be 'script', 'checkpoint' or None, got 'mine'"):
            restored(written, numbers="mine")


class TestNumbers:
    @pytest.mark.parametrize(
        ("optimizer", "text"),
        [
            (adamw(1e-2, moments="int8"), r"adamw.learning_rate is 0.001 in the checkpoint and 0.01 in the script"),
            (adamw(1e-3, b2=0.99, moments="int8"), r"adamw.b2 is 0.999 .* 0.99 in"),
            (
                adamw(schedules.linear_schedule(1e-3, 0.0, 10), moments="int8"),
                r"adamw.learning_rate is 0.001 .* linear_schedule",
            ),
            (adamw({"w": 1e-3, "b": 1e-4}, moments="int8"), r'adamw.learning_rate is 0.001 .* \{"b"|"w"'),
        ],
        ids=["rate", "decay", "schedule", "tree"],
    )
    def test_it_must_be_said_whose_hold(self, written, optimizer, text):
        with pytest.raises(ValueError, match=f'has other numbers: {text}.*; pass numbers="script" or numbers="check'):
            restored(written, optimizer)
        assert restored(written, optimizer, numbers="script").optimizer == optimizer
        assert restored(written, optimizer, numbers="checkpoint").optimizer == OPTIMIZER
        assert restored(written, numbers="script").optimizer == OPTIMIZER

    def test_of_a_schedule(self, tmp_path):
        def made(peak):
            return chain(clip_by_global_norm(1.0), adam(schedules.warmup_cosine_decay_schedule(0.0, peak, 10, 100)))

        tree = {"state": made(0.1).init(jnp.ones(3))}
        with Checkpoints(tmp_path, made(0.1)) as checkpoints:
            checkpoints.save(1, tree)
        place = r"chain\[1\].adam.learning_rate.warmup_cosine_decay_schedule.peak_value is 0.1 .* 0.2 in"
        with pytest.raises(ValueError, match=place):
            restored(tmp_path, made(0.2), tree)

    def test_the_next_save_has_those_that_hold(self, tmp_path, written):
        shutil.copytree(written, tmp_path / "copy")
        other = adamw(1e-2, moments="int8")
        with Checkpoints(tmp_path / "copy", other) as checkpoints:
            resumed = checkpoints.restore(placed(), numbers="checkpoint")
            checkpoints.save(30, resumed.tree)
        assert restored(tmp_path / "copy").step == 30  # with OPTIMIZER nothing differs
        with Checkpoints(tmp_path / "copy", OPTIMIZER) as checkpoints:
            resumed = checkpoints.restore(placed())
            checkpoints.optimizer = other
            checkpoints.save(40, resumed.tree)
        assert restored(tmp_path / "copy", other).step == 40


class TestWithoutConfig:
    def test_the_trees_are_compared(self, tmp_path):
        params = {"w": jnp.ones(3)}
        tree = {"state": optax.adam(1e-3).init(params)}
        with Checkpoints(tmp_path, None) as checkpoints:
            checkpoints.save(1, tree)
        assert restored(tmp_path, None, tree).optimizer is None
        with pytest.raises(ValueError, match=r'numbers="checkpoint" needs the optimizers of both; the script has none'):
            restored(tmp_path, None, tree, numbers="checkpoint")
        with pytest.raises(ValueError, match="was saved without an optimizer"):
            restored(tmp_path, adamw(1e-3), tree)
        # Its state has the same arrays under the same names.
        other = {"state": optax.adabelief(1e-3).init(params)}
        with pytest.raises(ValueError, match=r"\['state'\]\[0\] is ScaleByAdamState .* ScaleByBeliefState in `like`"):
            restored(tmp_path, None, other)

    def test_an_optimizer_that_cannot_be_written_is_refused(self, tmp_path):
        """Else a mask would switch off the comparison of everything, in silence."""
        for made in (optax.adam(1e-3), adamw(1e-3, mask=matrices), chain(optax.clip(1.0), adamw(1e-3))):
            with pytest.raises(TypeError, match=r"cannot be written beside the arrays: .*give None in place of it"):
                Checkpoints(tmp_path, made)
        assert list(tmp_path.iterdir()) == []

    def test_known_functions_are_compared(self, tmp_path):
        def made(rate):
            return adamw(rate, mask=matrices)

        tree = {"state": made(1e-3).init({"w": jnp.ones(3)})}
        with Checkpoints(tmp_path, made(1e-3), known={"matrices": matrices}) as checkpoints:
            checkpoints.save(1, tree)
        assert restored(tmp_path, None, tree).step == 1
        with (
            Checkpoints(tmp_path, made(1e-2), known={"matrices": matrices}) as checkpoints,
            pytest.raises(ValueError, match=r"adamw.learning_rate is 0.001"),
        ):
            checkpoints.restore(tree)

    def test_known_factories_are_compared(self, tmp_path):
        tree = {"params": jnp.ones(3), "state": mine(0.1).init(jnp.ones(3))}
        known = {"mine": mine, "other": other}
        with Checkpoints(tmp_path, mine(0.1), known=known) as checkpoints:
            checkpoints.save(1, tree)
        with Checkpoints(tmp_path, mine(0.2), known=known) as checkpoints:
            with pytest.raises(ValueError, match=r"other numbers: mine.rate is 0.1 in the checkpoint and 0.2"):
                checkpoints.restore(tree)
            assert checkpoints.restore(tree, numbers="checkpoint").optimizer == mine(0.1)
        with (
            Checkpoints(tmp_path, other(0.1), known=known) as checkpoints,
            pytest.raises(ValueError, match="another optimizer: the optimizer is mine in the checkpoint and other in"),
        ):
            checkpoints.restore(tree, numbers="script")


@optimizer
def mine(rate):
    return optax.scale(-rate)


@optimizer
def other(rate):
    return optax.scale(rate)


def matrices(params):
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)


# ----------------------------------------------------------------------------------------------------- what is refused


def the_largest(folder):
    return max((each for each in folder.rglob("d/*") if each.is_file()), key=lambda each: each.stat().st_size)


FILES = {
    "record": lambda step: step / RECORD,
    "metadata": lambda step: step / "_METADATA",
    "shardings": lambda step: step / "_sharding",
    "step_metadata": lambda step: step / "_CHECKPOINT_METADATA",
    "commit": lambda step: step / "commit_success.txt",
    "array_metadata": lambda step: step / "array_metadatas" / "process_0",
    "manifest": lambda step: step / "manifest.ocdbt",
    "manifest_of_a_process": lambda step: step / "ocdbt.process_0" / "manifest.ocdbt",
    "arrays": the_largest,
}


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def deleted(path):
    path.unlink()


class TestDamage:
    @pytest.mark.parametrize("damage", [truncated, flipped, deleted])
    @pytest.mark.parametrize("file", FILES)
    def test_the_step_before_is_taken(self, written, tmp_path, file, damage):
        folder = tmp_path / "copy"
        shutil.copytree(written, folder)
        path = FILES[file](folder / "20")
        damage(path)
        with Checkpoints(folder, OPTIMIZER) as checkpoints:
            resumed = checkpoints.restore(placed())
            assert resumed.step == 10
            (step, reason), *rest = resumed.skipped.items()
            assert (step, rest) == (20, [])
            assert reason.startswith(path.relative_to(folder / "20").as_posix())
            if file == "record":
                words = {truncated: "is damaged", flipped: "is damaged", deleted: "is missing"}
            else:
                words = {truncated: "bytes in place of", flipped: "its checksum differs", deleted: "is missing"}
            assert words[damage] in reason
            assert_identical(resumed.tree, placed())
            # The run goes on from there, and its own step takes the place of the broken one.
            checkpoints.save(20, jax.tree.map(lambda leaf: leaf + 2, resumed.tree))
        again = restored(folder)
        assert (again.step, dict(again.skipped)) == (20, {})
        assert_identical(again.tree, jax.tree.map(lambda leaf: leaf + 2, placed()))

    def test_an_empty_step(self, written, tmp_path):
        folder = tmp_path / "copy"
        shutil.copytree(written, folder)
        (folder / "30").mkdir()
        resumed = restored(folder)
        assert (resumed.step, list(resumed.skipped)) == (20, [30])

    def test_none_is_whole(self, written, tmp_path):
        folder = tmp_path / "copy"
        shutil.copytree(written, folder)
        truncated(the_largest(folder / "20"))
        flipped(the_largest(folder / "10"))
        before = {each: each.read_bytes() for each in folder.rglob("*") if each.is_file()}
        with pytest.raises(
            ValueError, match=r"none of the steps in .* is whole: 20: .* in place of .*; 10: .* differs"
        ):
            restored(folder)
        with Checkpoints(folder, OPTIMIZER) as checkpoints, pytest.raises(ValueError, match="must be larger than 20"):
            checkpoints.save(1, placed())
        assert {each: each.read_bytes() for each in folder.rglob("*") if each.is_file()} == before

    def test_any_bit_of_the_record(self):
        text = sealed({"format": 1, "files": {"a": [1, 2]}, "word": "é"})
        assert unsealed(text)["word"] == "é"
        assert json.loads(text)["files"] == {"a": [1, 2]}
        data = text.encode()
        for position in range(8 * len(data)):
            other = bytearray(data)
            other[position // 8] ^= 1 << position % 8
            with pytest.raises(ValueError, match=r"checksum|decode"):
                unsealed(bytes(other).decode())
        for length in range(len(data)):
            with pytest.raises(ValueError, match=r"checksum|decode"):
                unsealed(data[:length].decode())


def state_and(optimizer, **changes):
    tree = placed(optimizer)
    return tree | {"params": tree["params"] | changes}


class Other(NamedTuple):
    """A named tuple with the fields of the optimizer's."""

    count: object
    mu: object
    nu: object


class TestOther:
    @pytest.mark.parametrize(
        ("optimizer", "text"),
        [
            (laprop(1e-3, moments="int8"), "another optimizer: the optimizer is adamw in the checkpoint and laprop in"),
            (lion(1e-3, moments="int8"), "another optimizer: the optimizer is adamw .* and lion"),
            (chain(adamw(1e-3, moments="int8")), "another optimizer: the optimizer is adamw .* and chain"),
            (adamw(1e-3, nesterov=True, moments="int8"), "another optimizer: adamw.nesterov is false .* and true"),
            (
                adamw(1e-3),
                r'another storage: adamw.moments is "int8" .* "float32".*; its tree is another: '
                r"\['state'\].mu\['w'\] is uint16\[64, 128\] in the checkpoint and float32\[64, 128\] in `like`;"
                " restore it .* use jaxopt_adam.convert_state",
            ),
            (adamw(1e-3, moments="int4"), r'another storage: .* "int4".*mu\[\'w\'\] is uint16.*and uint8'),
            (adamw(1e-3, moments={"nu": "int8"}), r"another storage: .*\['state'\]"),
            (adamw(1e-3, mu_dtype="bfloat16"), r"another storage: adamw.mu_dtype is null .* \"bfloat16\""),
        ],
        ids=["laprop", "lion", "chain", "nesterov", "float32", "int4", "one_moment", "dtype"],
    )
    def test_another_optimizer(self, written, optimizer, text):
        with pytest.raises(ValueError, match=text):
            restored(written, optimizer)
        with pytest.raises(ValueError, match=text):
            restored(written, optimizer, numbers="checkpoint")

    @pytest.mark.parametrize(
        ("like", "text"),
        [
            (
                lambda: state_and(OPTIMIZER, w=jnp.ones((64, 64))),
                r"\['params'\]\['w'\] is float32\[64, 128\] .*\[64, 64\]",
            ),
            (
                lambda: state_and(OPTIMIZER, b=jnp.ones(128)),
                r"\['params'\]\['b'\] is bfloat16\[128\] .* float32\[128\]",
            ),
            (
                lambda: state_and(OPTIMIZER, c=jnp.ones(2)),
                r"\['params'\]\['c'\] is nothing in the checkpoint .* float32",
            ),
            (lambda: {"state": placed()["state"]}, r"\['params'\]\['b'\] is bfloat16\[128\] .* nothing in `like`"),
            (lambda: placed() | {"state": Other(*placed()["state"])}, r"\['state'\] is AdamState .* and Other in"),
            (lambda: state_and(OPTIMIZER, b=3), r"\['params'\]\['b'\] is bfloat16\[128\] in the checkpoint and int in"),
        ],
        ids=["shape", "dtype", "more", "less", "named_tuple", "number"],
    )
    def test_another_tree(self, written, like, text):
        with pytest.raises(ValueError, match=f"its tree is another: {text}"):
            restored(written, like=like())

    def test_a_folder_of_something_else(self, tmp_path):
        (tmp_path / "file").write_text("text")
        (tmp_path / "digits" / "7").mkdir(parents=True)
        (tmp_path / "hidden" / ".git").mkdir(parents=True)
        with ocp.CheckpointManager(tmp_path / "orbax") as manager:
            manager.save(3, args=ocp.args.StandardSave({"a": jnp.ones(2)}))
        before = sorted(tmp_path.rglob("*"))
        for name, what in {"file": "is a file", "digits": "has '7' and no", "orbax": "has '3' and no"}.items():
            with pytest.raises(ValueError, match=f"folder must be empty, or one that .*{name} {what}"):
                Checkpoints(tmp_path / name, OPTIMIZER)
        assert sorted(tmp_path.rglob("*")) == before
        Checkpoints(tmp_path / "hidden", OPTIMIZER).close()

    @pytest.mark.parametrize(
        ("changed", "text"),
        [
            ({"format": 2}, "has format 2, and this version reads 1"),
            ({"layout": 1}, "has a state of layout 1, and jaxopt_adam .* reads 2; restore it with the version that"),
        ],
        ids=["format", "layout"],
    )
    def test_another_format_or_layout(self, written, tmp_path, changed, text):
        folder = tmp_path / "copy"
        shutil.copytree(written, folder)
        path = folder / "20" / RECORD
        path.write_text(sealed(unsealed(path.read_text()) | changed))
        with pytest.raises(ValueError, match=f"step 20 in .* {text}"):
            restored(folder)

    def test_a_checkpoint_that_does_not_say_its_layout(self, written, tmp_path):
        folder = tmp_path / "copy"
        shutil.copytree(written, folder)
        path = folder / "20" / RECORD
        record = unsealed(path.read_text())
        del record["layout"]
        path.write_text(sealed(record))
        assert restored(folder).step == 20


# ----------------------------------------------------------------------------------------------- processes of their own


@pytest.fixture(scope="module")
def spawn():
    """A function that starts :func:`resumable.run` in a process that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["resumable"])
    # The server, which starts with the first process, looks for the module where its environment says.
    path = [str(Path(resumable.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))

    def started(*arguments, **options):
        process = context.Process(target=resumable.run, args=arguments, kwargs=options, daemon=True)
        process.start()
        return process

    yield started
    monkeypatch.undo()


def finished(*processes):
    for process in processes:
        process.join(timeout=100)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def entries(log):
    """The step and the hash that a run has started from, those that it has ended at, and the losses by step."""
    start, end, losses = None, None, {}
    for line in log.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            word, *rest = line.split()
            if word == "from":
                start = int(rest[0]), rest[1]
            elif word == "at":
                end = int(rest[0]), rest[1]
            else:
                losses[int(word)] = rest[0]
    return start, end, losses


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.mark.processes
class TestProcesses:
    def test_onto_other_devices_and_processes(self, spawn, tmp_path):
        whole, part = tmp_path / "whole", tmp_path / "part"
        finished(spawn(whole, tmp_path / "whole.log", steps=40, devices=8))
        _, end_of_whole, losses = entries(tmp_path / "whole.log")
        finished(spawn(part, tmp_path / "first.log", steps=20, devices=8))
        _, end_of_part, first = entries(tmp_path / "first.log")
        assert end_of_part[0] == 20
        for devices in (4, 1):
            finished(spawn(part, tmp_path / f"{devices}.log", steps=20, devices=devices))
            assert entries(tmp_path / f"{devices}.log")[0] == end_of_part
        # Two processes go on, on a copy, and what they save is read by one.
        shutil.copytree(part, tmp_path / "two")
        port = free_port()
        logs = [tmp_path / f"two{index}.log" for index in range(2)]
        finished(
            *(
                spawn(tmp_path / "two", log, steps=25, every=5, devices=4, process=index, processes=2, port=port)
                for index, log in enumerate(logs)
            )
        )
        starts, ends, _ = zip(*map(entries, logs), strict=True)
        assert starts == (end_of_part,) * 2
        assert ends[0] == ends[1]
        assert ends[0][0] == 25
        files = unsealed((tmp_path / "two" / "25" / RECORD).read_text())["files"]
        assert {name.partition("/")[0] for name in files} >= {"ocdbt.process_0", "ocdbt.process_1"}
        finished(spawn(tmp_path / "two", tmp_path / "one.log", steps=25, devices=8))
        assert entries(tmp_path / "one.log")[0] == ends[0]
        # On the devices that it was saved on the run goes on as if it had not been stopped, to the bit.
        finished(spawn(part, tmp_path / "second.log", steps=40, devices=8))
        start, end, second = entries(tmp_path / "second.log")
        assert start == end_of_part
        assert end == end_of_whole
        assert first | second == losses

    def test_two_processes_skip_a_broken_step_together(self, spawn, tmp_path):
        def both(folder, steps):
            port = free_port()
            logs = [tmp_path / f"{steps}-{index}.log" for index in range(2)]
            finished(
                *(
                    spawn(folder, log, steps=steps, every=5, devices=2, process=index, processes=2, port=port)
                    for index, log in enumerate(logs)
                )
            )
            return [entries(log)[0][0] for log in logs]

        assert both(tmp_path / "run", 10) == [0, 0]
        flipped(the_largest(tmp_path / "run" / "10" / "ocdbt.process_1"))
        assert both(tmp_path / "run", 11) == [5, 5]

    def test_killed_twenty_times(self, spawn, tmp_path):
        generator = random.Random(0)
        losses, resumed, unfinished = {}, [], 0

        def take(log):
            start, _, found = entries(log)
            for step, loss in found.items():
                assert losses.setdefault(step, loss) == loss, f"step {step} of {log.name}"
            return start

        for life in range(20):
            log = tmp_path / f"{life}.log"
            process = spawn(tmp_path / "run", log, steps=10**6, every=3)
            deadline = time.monotonic() + 60
            while not (log.exists() and log.read_text().count("\n") > 4):
                assert time.monotonic() < deadline
                assert process.is_alive()
                time.sleep(0.01)
            time.sleep(generator.uniform(0, 0.4))
            process.kill()
            process.join()
            step, _ = take(log)
            resumed.append(step)
            unfinished += any("tmp" in each.name for each in (tmp_path / "run").iterdir())
        assert resumed[0] == 0
        assert resumed == sorted(resumed)
        assert resumed[-1] > 0
        assert unfinished, "no kill was in the middle of a save"
        last = max(losses) + 2
        finished(spawn(tmp_path / "run", tmp_path / "last.log", steps=last, every=3))
        assert take(tmp_path / "last.log")[0] > 0
        finished(spawn(tmp_path / "whole", tmp_path / "whole.log", steps=last, every=10**6))
        assert entries(tmp_path / "whole.log")[2] == losses
        assert list(losses) == list(range(1, last + 1))
