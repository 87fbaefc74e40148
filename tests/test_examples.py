"""The examples run and print what they promise."""

import contextlib
import io
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.processes

EXAMPLES = Path(__file__).parent.parent / "examples"
WITH_FIGURE = ("population", "rl")
WITH_ARGUMENTS = (*WITH_FIGURE, "data_parallel", "fsdp_nnx", "multi_process", "transformer")


def run(name, *arguments):
    return subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ,
    )


def run_here(name, *arguments):
    """Run an example in this process, if it ends before it computes: a process of its own takes a second to start."""
    file, out, err = str(EXAMPLES / f"{name}.py"), io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", [file, *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        runpy.run_path(file, run_name="__main__")
    return subprocess.CompletedProcess(arguments, ended.value.code, out.getvalue(), err.getvalue())


def output(name, *arguments):
    done = run(name, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def assert_told_in_a_line(name, done):
    assert done.returncode == 2
    assert re.fullmatch(rf"{name}\.py: error: .+\n", done.stderr)
    assert not done.stdout


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_each_example_is_tested_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"sweep", "equinox_model", "flax_model", *WITH_ARGUMENTS}


def test_a_sweep_finds_rates_that_learn():
    assert float(output("sweep").partition("%")[0]) > 85


@pytest.mark.parametrize("name", ["equinox_model", "flax_model"])
def test_a_model_learns(name):
    first, last = map(float, re.findall(r"\d\.\d+", output(name)))
    assert last < 0.1 * first


@pytest.mark.parametrize("name", WITH_ARGUMENTS)
class TestArguments:
    def test_help_says_what_an_example_does_and_what_it_takes(self, name):
        done = run_here(name, "--help")
        assert done.returncode == 0
        told = done.stdout
        assert len(told.split()) > 50
        assert "--quick" in told
        assert ("--figure FILE" in told) == (name in WITH_FIGURE)

    @pytest.mark.parametrize("wrong", [("--quik",), ("--figure",), ("--figure", "no/such/folder/figure.png")])
    def test_wrong_arguments_are_told_in_a_line(self, name, wrong):
        assert_told_in_a_line(name, run_here(name, *wrong))


class TestPopulation:
    def test_the_quick_form_learns_in_one_trace(self, tmp_path):
        text = output("population", "--quick", "--figure", tmp_path / "figure.png")
        for name in ("population-based", "fixed hyperparameters"):
            (accuracy,) = re.findall(rf"^{name} .*? ([\d.]+) ± [\d.]+ %$", text, re.MULTILINE)
            assert 80 < float(accuracy) < 100
        assert "traces of the program: 1\n" in text
        assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")

    def test_folders_without_data_are_told_in_a_line(self, tmp_path):
        done = run("population", "--data", tmp_path)
        assert done.returncode == 2
        assert re.fullmatch(r"population\.py: error: .* has no IDX files.*\n", done.stderr)

    def test_the_worst_quarter_becomes_the_best_with_other_numbers(self):
        example = runpy.run_path(str(EXAMPLES / "population.py"))
        old = example["population"](jax.random.key(0), pixels=3, steps=10)
        # Members whose states differ, as after some steps.
        number = lambda leaf: jnp.arange(16, dtype=leaf.dtype).reshape(-1, *[1] * (leaf.ndim - 1))
        old = old._replace(state=jax.tree.map(lambda leaf: leaf + number(leaf), old.state))
        costs = jnp.asarray(np.random.default_rng(0).permutation(16), jnp.float32).at[5].set(jnp.nan)
        new = example["exploit_and_explore"](old, costs, jax.random.key(1))
        order = np.argsort(np.asarray(costs))
        assert order[-1] == 5
        source = np.arange(16)
        source[order[-4:]] = order[:4]
        kept = np.setdiff1d(np.arange(16), order[-4:])
        # The weights and the state are copied whole, and of the recipes all but four numbers.
        for before, after in zip(jax.tree.leaves(old[:2]), jax.tree.leaves(new[:2]), strict=True):
            np.testing.assert_array_equal(before[source], after)
        changed = 0
        for before, after in zip(jax.tree.leaves(old.recipes), jax.tree.leaves(new.recipes), strict=True):
            np.testing.assert_array_equal(before[kept], after[kept])
            changed += not np.array_equal(before[source], after)
        assert changed == 4
        before, after = example["numbers_of"](old.recipes), example["numbers_of"](new.recipes)
        for name, (low, high) in example["RANGES"].items():
            each = np.asarray(before[name])[order[:4], None] * np.array([0.8, 1.25])
            nearest = np.abs(np.asarray(after[name])[order[-4:], None] / each.clip(low, high) - 1).min(axis=1)
            assert nearest.max() < 1e-4  # 1 − b₁ has lost digits


class TestReinforcementLearning:
    def test_the_quick_form_learns(self, tmp_path):
        text = output("rl", "--quick", "--figure", tmp_path / "figure.png")
        low, high = (float(row.split()[2]) for row in text.splitlines()[-2:])
        assert low < 100 < 150 < high <= 200
        assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")

    def test_the_cart_moves_as_lagrange_says(self):
        pushed = runpy.run_path(str(EXAMPLES / "rl.py"))["pushed"]
        cart = np.random.default_rng(0).normal(size=(20, 4))
        actions = np.arange(20) % 2
        moved = pushed(jnp.asarray(cart, jnp.float32), jnp.asarray(actions, jnp.float32))
        for now, action, after in zip(cart, actions, moved, strict=True):
            _, velocity, angle, spin = now
            # A cart of 1 kg with a rod of 0.1 kg and 1 m, whose moment of inertia is 4/3 m l² around its lower end.
            coupling = 0.1 * 0.5 * np.cos(angle)
            inertia = [[1.1, coupling], [coupling, 4 / 3 * 0.1 * 0.5**2]]
            forces = [10 * (2 * action - 1) + 0.1 * 0.5 * spin**2 * np.sin(angle), 0.1 * 9.8 * 0.5 * np.sin(angle)]
            linear, angular = np.linalg.solve(inertia, forces)
            np.testing.assert_allclose(after, now + 0.02 * np.array([velocity, linear, spin, angular]), atol=1e-5)

    def test_gains_are_returns_compared_to_other_episodes(self):
        gains = runpy.run_path(str(EXAMPLES / "rl.py"))["gains"]
        lengths = np.random.default_rng(0).integers(1, 200, 16)
        alive = (np.arange(200)[:, None] < lengths).astype(np.float32)
        left = np.maximum(lengths - np.arange(200)[:, None], 0)
        returns = (1 - 0.99**left) / (1 - 0.99)
        expected = np.where(alive > 0, returns - returns.mean(axis=1, keepdims=True), 0)
        expected /= np.sqrt((expected**2).sum() / alive.sum())
        np.testing.assert_allclose(gains(jnp.asarray(alive)), expected, atol=1e-4)


class TestDataParallel:
    def test_a_cut_state_gives_the_weights_of_a_whole_one(self):
        text = output("data_parallel", "--quick", "--devices", "4")
        found = re.findall(r"^(\w+) state: ([\d,]+) bytes on each device, test accuracy ([\d.]+)%$", text, re.MULTILINE)
        (cut, cut_bytes, cut_accuracy), (whole, whole_bytes, whole_accuracy) = found
        assert (cut, whole) == ("cut", "whole")
        assert cut_accuracy == whole_accuracy
        assert 80 < float(cut_accuracy) < 100
        # All but the moments of the last bias, which four devices do not divide, and the count.
        assert int(cut_bytes.replace(",", "")) == (int(whole_bytes.replace(",", "")) - 84) // 4 + 84
        assert re.search(r"^\.mu\['w2'\] .* P\('data', None\) +262,144 +65,536$", text, re.MULTILINE)
        assert re.search(r"^\.mu\['w2'\] .* whole +262,144 +262,144$", text, re.MULTILINE)
        assert text.endswith("\nThe weights are the same to the bit.\n")

    @pytest.mark.parametrize("wrong", [("--devices", "0"), ("--devices", "3"), ("--state", "half")])
    def test_wrong_layouts_are_told_in_a_line(self, wrong):
        assert_told_in_a_line("data_parallel", run("data_parallel", *wrong))


class TestFsdpNnx:
    def test_it_learns_in_parts_and_goes_on_from_a_checkpoint(self, tmp_path):
        command = ["fsdp_nnx", "--quick", "--every", "4", "--folder", str(tmp_path / "saved")]
        text = output(*command)
        (first, _, last) = map(float, re.findall(r"^update \d+: loss ([\d.]+), ", text, re.MULTILINE))
        assert 5 < first < 6
        assert last < 3.8
        figures = (
            r"^update 12: loss [\d.]+, learning_rate 9\.24e-05, gradient_norm [\d.]+, quantization_error 0\.00\d+, "
        )
        assert re.search(figures, text, re.MULTILINE)
        for name in ("weights", "state"):
            ((part, whole),) = re.findall(rf"^{name}: ([\d,]+) of ([\d,]+) bytes on each of 8", text, re.MULTILINE)
            assert int(part.replace(",", "")) < 1.1 * int(whole.replace(",", "")) / 8
        loss = re.compile(r"^loss on text that was not trained on: ([\d.]+)$", re.MULTILINE)
        (reached,) = loss.findall(text)
        # As if it had been killed in the last updates.
        shutil.rmtree(tmp_path / "saved" / "12")
        resumed = output(*command)
        assert resumed.startswith("resumed at update 8\n")
        assert loss.findall(resumed) == [reached]
        # On another mesh nothing is left to do.
        (elsewhere,) = loss.findall(output(*command, "--devices", "2", "--model", "1"))
        assert abs(float(elsewhere) - float(reached)) < 2e-3  # bfloat16 is summed in another order

    @pytest.mark.parametrize("wrong", [("--model", "3"), ("--devices", "6", "--model", "2"), ("--updates", "0")])
    def test_wrong_arguments_are_told_in_a_line(self, wrong):
        assert_told_in_a_line("fsdp_nnx", run("fsdp_nnx", *wrong))


class TestMultiProcess:
    """Processes of four devices each, with gloo."""

    HASH = r"^rank (\d): the hash of the weights is (\w{16})$"

    @staticmethod
    def skip_without_gloo(done):
        if "needs gloo on a CPU" in done:
            pytest.skip("jaxlib has no gloo here, by which processes on CPUs exchange arrays")

    def test_two_processes_end_with_the_weights_of_one(self, tmp_path):
        command = ["multi_process", "--quick", "--every", "8", "--folder", tmp_path / "saved"]
        done = run(*command, "--processes", "2")
        self.skip_without_gloo(done.stderr)
        assert done.returncode == 0, done.stderr[-3000:]
        two = dict(re.findall(self.HASH, done.stdout, re.MULTILINE))
        assert two.keys() == {"0", "1"}
        assert len(set(two.values())) == 1
        (accuracy,) = re.findall(r"^test accuracy ([\d.]+)% after 20 steps$", done.stdout, re.MULTILINE)
        assert 80 < float(accuracy) < 100
        ((part, whole),) = re.findall(r"^each of 8 devices has ([\d,]+) of ([\d,]+) bytes", done.stdout, re.MULTILINE)
        assert int(part.replace(",", "")) < 1.01 * int(whole.replace(",", "")) / 8
        # One process goes on with what two have saved, and ends with the same weights.
        shutil.rmtree(tmp_path / "saved" / "20")
        text = output(*command, "--processes", "1", "--devices", "8")
        assert "rank 0 has resumed at step 16\n" in text
        assert dict(re.findall(self.HASH, text, re.MULTILINE)) == {"0": two["0"]}

    @pytest.mark.parametrize("by_hand", [False, True], ids=["watched", "by_hand"])
    def test_a_process_that_dies_ends_the_others_within_a_minute(self, tmp_path, by_hand):
        common = [sys.executable, EXAMPLES / "multi_process.py", "--processes", "2", "--devices", "1"]
        common += ["--steps", "20000"]
        commands = [common]
        if by_hand:
            address = f"127.0.0.1:{free_port()}"
            commands = [[*common, "--rank", str(rank), "--coordinator", address] for rank in range(2)]
        log = tmp_path / "log"
        with log.open("w") as file:
            environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
            started = [subprocess.Popen(each, stdout=file, stderr=file, env=environment) for each in commands]
        try:
            pids: dict[str, str] = {}
            limit = time.monotonic() + 200
            while len(pids) < 2 or "step 11 " not in log.read_text():
                self.skip_without_gloo(log.read_text())
                assert time.monotonic() < limit, log.read_text()[-3000:]
                assert started[0].poll() is None, log.read_text()[-3000:]
                time.sleep(0.2)
                pids = dict(re.findall(r"rank (\d) of 2 is process (\d+) with 1 of 2 devices", log.read_text()))
            os.kill(int(pids["1"]), signal.SIGKILL)
            code = started[0].wait(timeout=60)
            assert code != 0
            if by_hand:
                assert "JAX distributed service detected fatal errors" in log.read_text()
            else:
                assert code == 1
                assert "\nrank 1 has ended with SIGKILL; the others are ended too\n" in log.read_text()
                with pytest.raises(ProcessLookupError):
                    os.kill(int(pids["0"]), 0)
        finally:
            for each in started:
                each.terminate()
                each.wait()

    def test_without_gloo_it_says_so_in_a_line(self):
        program = str(EXAMPLES / "multi_process.py")
        script = f"""
import runpy, sys
from jax._src.lib import _jax
def missing(**_):
    raise RuntimeError("only implemented for others")
_jax.make_gloo_tcp_collectives = missing
sys.argv = [{program!r}, "--processes", "1", "--rank", "0", "--coordinator", "127.0.0.1:{free_port()}"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
        assert_told_in_a_line("multi_process", done)
        assert "needs gloo on a CPU" in done.stderr

    @pytest.mark.parametrize(
        "wrong",
        [
            (),
            ("--processes", "0"),
            ("--processes", "3"),
            ("--rank", "0"),
            ("--processes", "2", "--rank", "2", "--coordinator", "localhost:1"),
            ("--processes", "1", "--folder", str(EXAMPLES)),
        ],
    )
    def test_what_is_wrong_is_told_in_a_line(self, wrong):
        done = run("multi_process", *wrong)
        self.skip_without_gloo(done.stderr)
        assert done.returncode == 2
        assert re.match(r"multi_process\.py: error: .+\n", done.stderr)
        assert "Traceback" not in done.stderr


class TestTransformer:
    def test_it_learns_and_goes_on_when_it_was_killed(self, tmp_path):
        text = output("transformer", "--quick")
        first, *_, last = map(float, re.findall(r"^step +\d+  loss ([\d.]+)  █+$", text, re.MULTILINE))
        assert 4 < first < 7
        assert last < 3.2
        assert re.search(r"^[\d.]+ steps a second$", text, re.MULTILINE)
        # The last save may or may not be done when the process dies.
        log, command = tmp_path / "log", ["--quick", "--every", "5", "--folder", str(tmp_path / "saved")]
        with log.open("w") as file:
            started = subprocess.Popen([sys.executable, EXAMPLES / "transformer.py", *command], stderr=file)
        limit = time.monotonic() + 200
        while "step 21 " not in log.read_text():
            assert started.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < limit
            time.sleep(0.01)
        started.kill()
        started.wait()
        resumed = output("transformer", *command)
        (at,) = re.findall(r"^resumed at step (\d+)$", resumed, re.MULTILINE)
        assert 10 <= int(at) < 40
        (loss,) = re.findall(r"^loss of the last step: .*$", text, re.MULTILINE)
        assert loss in resumed
        sample = text[text.index("a sample:") :]
        assert len(sample) > 30
        assert resumed.endswith(sample)
        # On other devices in another layout there is nothing left to do.
        assert output("transformer", *command, "--layout", "zero1", "--devices", "2").endswith(sample)
        # Another storage is refused in a line.
        assert re.search(
            "moments is .*float32.* in the checkpoint", run("transformer", *command, "--moments", "int8").stderr
        )

    @pytest.mark.parametrize(("layout", "weights", "state"), [("fsdp", 1, 1), ("zero1", 8, 1), ("replicated", 8, 8)])
    def test_a_layout_says_what_a_device_holds(self, layout, weights, state):
        text = output("transformer", "--quick", "--steps", "1", "--layout", layout)
        (sizes,) = re.findall(
            rf"^{layout} on 8 devices, bytes on each: ([\d,]+) of weights, ([\d,]+) of state$", text, re.MULTILINE
        )
        whole = 4 * (2 * 64 * (2 + 12 * 64) + 128 * 64 + 32 * 64 + 64 + 64 * 128)
        found = [int(size.replace(",", "")) / (whole / 8) for size in sizes]
        np.testing.assert_allclose(found, [weights, 2 * state], rtol=1e-3)

    @pytest.mark.parametrize("wrong", [("--layout", "half"), ("--devices", "3"), ("--every", "0")])
    def test_wrong_arguments_are_told_in_a_line(self, wrong):
        assert_told_in_a_line("transformer", run("transformer", *wrong))
