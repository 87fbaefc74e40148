"""The experiments: data, the race, the claim, and the command as a person would call it."""

import dataclasses
import errno
import gzip
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import jaxopt_adam
import jaxopt_adam_command
from jaxopt_adam import descend, sgd
from jaxopt_adam.lab import (
    animation,
    averages,
    claim,
    cli,
    commands,
    data,
    figures,
    interrupt,
    landscape,
    memory,
    output,
    race,
    report,
    styles,
)
from jaxopt_adam.lab.cli import main
from jaxopt_adam.lab.explain import digits

pytestmark = pytest.mark.lab


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_digits(folder: Path, name: str = "train", count: int = 200, *, zipped: bool = False) -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(10, size=count).astype(np.uint8)
    images = generator.integers(100, size=(count, 4, 5)).astype(np.uint8)
    images[np.arange(count), labels % 4, labels // 4] = 255
    for what, array in (("images-idx3", images), ("labels-idx1", labels)):
        content = idx(array)
        path = folder / f"{name}-{what}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(content) if zipped else content)


@pytest.fixture
def mnist() -> Path:
    if "JAXOPT_ADAM_MNIST" not in os.environ:
        pytest.skip("JAXOPT_ADAM_MNIST names no folder of IDX files")
    return Path(os.environ["JAXOPT_ADAM_MNIST"])


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


# Data.


def test_the_embedded_digits_are_divided_without_overlap():
    digits = data.embedded()
    assert sum(digits.sizes.values()) == 1797
    images = np.concatenate([part[0] for part in (digits.train, digits.validation, digits.test)])
    assert images.shape == (1797, 64)
    assert images.min() == 0
    assert images.max() == 1
    assert len(np.unique(images, axis=0)) == 1797


@pytest.mark.parametrize("zipped", [False, True])
def test_a_folder_of_idx_files_is_read_as_it_was_written(tmp_path, zipped):
    write_digits(tmp_path, "train", 200, zipped=zipped)
    write_digits(tmp_path, "t10k", 50, zipped=zipped)
    digits = data.from_folder(tmp_path)
    assert digits.sizes == {"train": 175, "validation": 25, "test": 50}
    assert digits.train[0].dtype == np.float32
    np.testing.assert_array_equal(digits.train[1][:5], np.random.default_rng(0).integers(10, size=200)[:5])
    assert (digits.train[0].max(axis=1) == 1).all()


def test_one_pair_of_files_gives_its_first_four_fifths_to_train_on(tmp_path):
    write_digits(tmp_path, "t10k", 200)
    assert data.from_folder(tmp_path).sizes == {"train": 140, "validation": 20, "test": 40}


def test_mnist_is_read(mnist):
    digits = data.from_folder(mnist)
    assert digits.train[0].shape[1] == 784
    assert set(digits.test[1]) == set(range(10))
    if not (mnist / "train-images-idx3-ubyte.gz").exists():
        assert digits.sizes == {"train": 7000, "validation": 1000, "test": 2000}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-3], r"should hold 4,000 bytes of shape \(200, 4, 5\), but holds 3,997"),
        (lambda content: content + b"\0", "but holds 4,001"),
        (lambda content: b"\0\0\x0d" + content[3:], "starts with 00000d03; expected 00000803, an IDX file of unsigned"),
        (lambda content: content[:3] + b"\1" + content[4:], "starts with 00000801; expected 00000803"),
        (lambda _: b"GIF89a", "starts with 47494638; expected 00000803"),
        (lambda content: content[:7], "ends after 7 bytes; its header takes 16"),
        (lambda _: b"", "ends after 0 bytes; its header takes 16"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path, damage, message):
    write_digits(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(data.DataError, match=message) as error:
        data.from_folder(tmp_path)
    assert str(path) in str(error.value)


def test_a_truncated_gzip_file_is_named(tmp_path):
    write_digits(tmp_path, zipped=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    for content in (path.read_bytes()[:-20], b"no gzip"):
        path.write_bytes(content)
        with pytest.raises(data.DataError, match="cannot be read"):
            data.from_folder(tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(data.DataError, match="nowhere does not exist; expected a folder of IDX files"):
        data.from_folder(tmp_path / "nowhere")
    with pytest.raises(data.DataError, match="null is a file; expected a folder of IDX files"):
        data.from_folder(Path(os.devnull))
    with pytest.raises(data.DataError, match="has no IDX files"):
        data.from_folder(tmp_path)


@pytest.mark.parametrize(("removed", "other"), [("labels-idx1", "images-idx3"), ("images-idx3", "labels-idx1")])
@pytest.mark.parametrize("zipped", [False, True])
def test_half_a_pair_is_refused(tmp_path, removed, other, zipped):
    write_digits(tmp_path)
    write_digits(tmp_path, "t10k", zipped=zipped)
    end = ".gz" if zipped else ""
    (tmp_path / f"t10k-{removed}-ubyte{end}").unlink()
    message = rf"has t10k-{other}-ubyte{end} but no t10k-{removed}-ubyte\[\.gz\]"
    with pytest.raises(data.DataError, match=message):
        data.from_folder(tmp_path)


def test_too_few_images_are_counted(tmp_path):
    for count in (0, 19):
        write_digits(tmp_path, count=count)
        with pytest.raises(data.DataError, match=f"has {count} images; at least 20 are needed"):
            data.from_folder(tmp_path)
    write_digits(tmp_path, count=20)
    assert data.from_folder(tmp_path).sizes == {"train": 14, "validation": 2, "test": 4}


def test_images_without_pixels_are_refused(tmp_path):
    write_digits(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((200, 0, 28), np.uint8)))
    with pytest.raises(data.DataError, match="0 × 28 pixels"):
        data.from_folder(tmp_path)


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    write_digits(tmp_path)
    for labels, message in (
        (np.zeros(100, np.uint8), "200 images and train-labels 100"),
        (np.full(200, 11, np.uint8), "label 11"),
    ):
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(labels))
        with pytest.raises(data.DataError, match=message):
            data.from_folder(tmp_path)


def test_openml_without_a_network_says_so(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", refuse)
    with pytest.raises(data.DataError, match=r"is there a network\? \(no route\)"):
        data.from_openml()


# The race.

SETTINGS = race.Settings(learning_rates=(0.003, 0.1, 30.0), seeds=2, steps=40, every=15, batch_size=32, hidden=8)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, race.Outcome]:
    digits = data.embedded()
    return {
        name: list(race.run(entry, digits, SETTINGS))[-1]
        for name, entry in zip(race.RULES, race.entries(list(race.RULES), SETTINGS), strict=True)
    }


def test_every_rule_learns(outcomes):
    for name, outcome in outcomes.items():
        assert outcome.cost.shape == (3, 2, 40), name
        assert outcome.test.shape == outcome.validation.shape == (3, 2, 4), name
        np.testing.assert_array_equal(outcome.at, [0, 15, 30, 40])
        assert outcome.cost[outcome.best, :, -5:].mean() < 0.9 * outcome.cost[outcome.best, :, :5].mean(), name


def test_batch_gradient_descent_is_what_numpy_makes_of_it():
    digits = data.embedded()
    settings = race.Settings(learning_rates=(0.1,), seeds=1, steps=3, every=3, hidden=4)
    (entry,) = race.entries(["batch"], settings)
    *_, outcome = race.run(entry, digits, settings)
    images, labels = digits.train
    (w1, b1), (w2, b2) = ((layer["w"], layer["b"]) for layer in race.initial(race.seed_keys(settings)[0], 64, 4))
    w1, b1, w2, b2 = (np.asarray(each, np.float64) for each in (w1, b1, w2, b2))
    costs = []
    for _ in range(3):
        before = images @ w1 + b1
        hidden = np.maximum(before, 0)
        logits = hidden @ w2 + b2
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        costs.append(-np.log(probabilities[np.arange(len(labels)), labels]).mean())
        d_logits = (probabilities - np.eye(10)[labels]) / len(labels)
        d_before = (d_logits @ w2.T) * (before > 0)
        w2 -= 0.1 * hidden.T @ d_logits
        b2 -= 0.1 * d_logits.sum(axis=0)
        w1 -= 0.1 * images.T @ d_before
        b1 -= 0.1 * d_before.sum(axis=0)
    np.testing.assert_allclose(outcome.cost[0, 0], costs, rtol=1e-5)


def test_the_best_learning_rate_is_chosen_on_validation_data(outcomes):
    outcome = outcomes["adam"]
    validation = outcome.validation[..., -1].mean(axis=1)
    assert validation[outcome.best] == validation.max()


def test_a_diverged_learning_rate_is_never_the_best(outcomes):
    for name in ("sgd", "momentum", "adam", "rmsprop"):
        assert not outcomes[name].test[-1, :, -1].mean() > 0.5
        assert outcomes[name].best < 2


@pytest.mark.parametrize(("devices", "each"), [(4, 2), (3, 2), (8, 1)])
def test_several_devices_share_the_runs(outcomes, monkeypatch, devices, each):
    """Six runs, also on a number of devices that does not divide them; the results are those of one, to rounding."""
    train, carries = race._train, []
    monkeypatch.setattr(race, "_train", lambda *given: carries.append(train(*given)) or carries[-1])
    settings = dataclasses.replace(SETTINGS, devices=devices)
    (entry,) = race.entries(["adam"], settings)
    traces = train._cache_size()
    *_, outcome = race.run(entry, data.embedded(), settings)
    assert train._cache_size() == traces + 2  # for 15 iterations, and for the last 10
    for leaf in jax.tree.leaves(carries):
        assert len(leaf.sharding.device_set) == min(devices, 6)
        assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {each}
    alone = outcomes["adam"]
    assert outcome.cost.shape == alone.cost.shape
    assert outcome.best == alone.best
    np.testing.assert_allclose(outcome.cost[:2], alone.cost[:2], rtol=1e-3)  # the largest rate diverges
    np.testing.assert_allclose(outcome.test[:2], alone.test[:2], atol=0.005)
    np.testing.assert_allclose(outcome.validation[:2], alone.validation[:2], atol=0.005)


def outcome_of(test: list[list[float]], at: list[int]) -> race.Outcome:
    accuracies = np.array(test)[:, None, :]
    return race.Outcome(
        race.Entry("rule", sgd, {}, None),
        np.array([0.01, 0.1])[: len(test)],
        np.ones((len(test), 1, at[-1])),
        np.array(at),
        accuracies,
        accuracies,
        1.0,
    )


def test_iterations_to_an_accuracy():
    outcome = outcome_of([[0.1, 0.92, 0.91, 0.95]], [0, 10, 20, 30])
    assert outcome.iterations_to(0.90) == 10
    assert outcome.iterations_to(0.94) == 30
    assert outcome.iterations_to(0.96) is None


@pytest.mark.parametrize(
    ("descent", "adam", "held", "words"),
    [
        ([0.1, 0.5, 0.7, 0.79], [0.1, 0.95, 0.95, 0.96], True, "The claim held."),
        ([0.1, 0.5, 0.7, 0.93], [0.1, 0.95, 0.95, 0.96], False, "because gradient descent did better than"),
        ([0.1, 0.5, 0.7, 0.79], [0.1, 0.80, 0.95, 0.96], False, "because Adam did not reach 94 % within about"),
        ([0.1, 0.5, 0.7, 0.79], [0.1, 0.80, 0.85, 0.86], False, "Adam never reached 94 %, and was at 80.0 %"),
        ([0.1, 0.5, 0.7, 0.93], [0.1, 0.80, 0.95, 0.96], False, "of the iterations and gradient descent did better"),
    ],
)
def test_the_claim_is_judged_by_its_figures(descent, adam, held, words):
    at = [0, 100, 200, 300]
    equal, best = claim.compare(outcome_of([descent], at), outcome_of([adam], at))
    assert equal.held is best.held is held
    assert words in equal.sentence
    assert f"{100 * descent[-1]:.1f} % after 300 iterations" in equal.sentence
    verdict = claim.verdict([equal, best], "data")
    assert "On data, with 300 iterations and 1 seed, the claim held at " in verdict
    assert ("held at 1 of the 1" in verdict) is held


def test_the_report_and_the_page_judge_the_claim_by_the_same_race():
    assert race.Settings() == digits.SETTINGS


# Landscapes and averages.


@pytest.mark.parametrize("name", landscape.LANDSCAPES)
def test_the_minima_are_minima(name):
    chosen = landscape.LANDSCAPES[name]
    for minimum in chosen.minima:
        at = jnp.array(minimum, float)
        assert chosen.function(at) < 1e-6
        assert all(
            chosen.function(at + jnp.array(step)) > 1e-6 for step in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01))
        )


def test_a_walk_is_the_best_learning_rates_path():
    bowl = landscape.LANDSCAPES["bowl"]
    found = landscape.walk(bowl, "sgd", steps=20, learning_rates=(0.001, 0.01, 0.1))
    assert found.learning_rate == 0.01
    path = descend(bowl.function, jnp.array(bowl.start), sgd(0.01), 20)
    np.testing.assert_allclose(found.path, path.x, rtol=1e-5)


def test_a_zigzag_does_not_paint_over_the_other_paths():
    across = np.stack([np.linspace(0, 1, 101), np.tile([0.0, 0.5], 51)[:101]], axis=1)
    straight = across * [1.0, 0.0]
    calm, wild = (landscape.Walk("rmsprop", "RMSProp", 0.1, path, np.ones(101)) for path in (straight, across))
    assert calm.zigzag == pytest.approx(1)
    assert wild.zigzag == pytest.approx(50 / 1.25**0.5, rel=0.01)
    whole, pale = landscape.path_look(calm), landscape.path_look(wild)
    assert whole == styles.line("rmsprop") | {"alpha": 1.0}
    assert pale["linewidth"] < 0.5 * whole["linewidth"]
    assert pale["alpha"] < 0.6
    assert pale["zorder"] < whole["zorder"] < styles.line("adam")["zorder"]


def test_walks_that_diverge_or_stay_are_drawn(tmp_path, capsys):
    arguments = ["--steps", "9", "--rule", "sgd", "--rule", "adam", "--animate", "--out", str(tmp_path)]
    assert run(capsys, "landscape", "rosenbrock", "--learning-rate", "1e5", *arguments)[0] == 0
    assert run(capsys, "landscape", "sphere", "--start", "0", "0", *arguments)[0] == 0
    assert len(list(tmp_path.glob("*.gif"))) == len(list(tmp_path.glob("*.png"))) == 2


def test_the_path_of_adam_is_the_first_in_the_legend_and_the_last_drawn():
    bowl = landscape.LANDSCAPES["bowl"]
    walks = [landscape.walk(bowl, rule, steps=5, learning_rates=(0.01,)) for rule in ("sgd", "adam", "rmsprop")]
    drawn = landscape.figure(bowl, walks)
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.get_texts()][:2] == ["Adam (0.01)", "gradient descent (0.01)"]
    left, right = drawn.axes
    for axes in (left, right):
        highest = max(axes.lines, key=lambda line: line.get_zorder())
        assert highest.get_color() == styles.RULES["adam"].light


def test_the_moving_picture_is_small_and_pauses_at_its_end(tmp_path):
    bowl = landscape.LANDSCAPES["bowl"]
    walks = [landscape.walk(bowl, rule, steps=130, learning_rates=(0.01,)) for rule in ("sgd", "adam")]
    animation.save(bowl, walks, tmp_path / "made.gif")
    kept = Path(__file__).parents[1] / "docs" / "images" / "paths.gif"
    for path, frames in ((tmp_path / "made.gif", 45), (kept, 61)):  # every third step, and every one
        assert path.stat().st_size < 1_000_000
        with Image.open(path) as picture:
            durations = []
            for frame in range(picture.n_frames):
                picture.seek(frame)
                durations.append(picture.info["duration"])
            assert len(durations) == frames
            assert picture.info["loop"] == 0  # for ever
            assert durations[-1] > 1500 > max(durations[:-1])
            assert sum(durations) <= 8000
            found = {color for _, color in picture.convert("RGB").getcolors(1 << 20)}
        adam = [int(styles.RULES["adam"].light[at : at + 2], 16) for at in (1, 3, 5)]
        assert min(np.abs(np.subtract(adam, color)).max() for color in found) < 12


def test_averages_with_and_without_bias_correction():
    result = averages.average((0.0, 0.9), length=50, noise=1.0, seed=3)
    np.testing.assert_allclose(result.biased[0], result.signal, rtol=1e-6)
    weights = 0.1 * 0.9 ** np.arange(50)[::-1]
    np.testing.assert_allclose(result.biased[1, -1], weights @ result.signal, rtol=1e-5)
    np.testing.assert_allclose(result.debiased[1, -1], weights @ result.signal / weights.sum(), rtol=1e-5)
    np.testing.assert_allclose(result.debiased[1, 0], result.signal[0], rtol=1e-6)


# Output.


def half_write(out: Path, error: BaseException) -> None:
    with output.new_folder(out) as unfinished:
        (unfinished / "figure").write_text("new")
        raise error


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "deep" / "report"
    with pytest.raises(KeyboardInterrupt):
        half_write(out, KeyboardInterrupt())
    assert not (tmp_path / "deep").exists()
    with output.new_folder(out) as unfinished:
        (unfinished / "whole").write_text("x")
        assert not (out / "whole").exists()
    assert [path.name for path in out.iterdir()] == ["whole"]


def test_a_folder_that_cannot_be_made_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError), output.new_folder(tmp_path / "new" / ".." / "file"):
        pytest.fail("a folder was made of a file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_error_names_the_folder_that_was_given(tmp_path, monkeypatch):
    def refused(*_args, **_options):
        raise PermissionError(13, "Permission denied", str(tmp_path / ".unfinished-1234"))

    monkeypatch.setattr(output.tempfile, "TemporaryDirectory", refused)
    with pytest.raises(PermissionError) as caught, output.new_folder(tmp_path):
        pytest.fail("a folder was made where none can be")
    assert caught.value.filename == str(tmp_path)


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "figure").write_text("old")
    with pytest.raises(RuntimeError):
        half_write(tmp_path, RuntimeError())
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"mine": "precious", "figure": "old"}
    with output.new_folder(tmp_path) as unfinished:
        (unfinished / "figure").write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"mine": "precious", "figure": "new"}


def test_a_folder_where_a_file_should_go_stops_all(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a").write_text("old")
    with pytest.raises(IsADirectoryError, match="where a file should go"):
        write_two(tmp_path)
    assert (tmp_path / "a").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def write_two(out: Path) -> None:
    with output.new_folder(out) as unfinished:
        for name in "ab":
            (unfinished / name).write_text("new")


# The command.


def test_digits_writes_a_report(tmp_path, capsys):
    out = tmp_path / "report"
    code, stdout, stderr = run(capsys, "digits", "--quick", "--steps", "30", "--out", str(out))
    assert (code, stderr) == (0, "")
    assert re.findall(f"Written: {re.escape(str(out))}/(.*)\n", stdout) == [
        "report.html",
        "results.json",
        "accuracy.png",
        "cost.png",
        "rates.png",
        "batches.png",
    ]
    assert {path.name for path in out.iterdir()} == {
        "report.html", "results.json", "accuracy.png", "cost.png", "rates.png", "batches.png",
    }  # fmt: skip
    results = json.loads((out / "results.json").read_text())
    assert [each["rule"] for each in results["rules"]] == [title for title, *_ in race.RULES.values()]
    assert results["settings"]["steps"] == 30
    assert all(title in stdout for title, *_ in race.RULES.values())
    page = (out / "report.html").read_text()
    assert results["verdict"].replace("'", "&#x27;") in page
    assert page.count("<svg") == 2 * 4  # of each figure one for wide screens and one for narrow ones
    assert not re.search(r"(src|href)=\"(?!#)", page)


def test_digits_races_the_rules_that_are_asked_for(tmp_path, capsys):
    write_digits(tmp_path)
    out = tmp_path / "out"
    arguments = ["--rule", "adam", "--learning-rate", "0.01", "--steps", "5", "--seeds", "1", "--hidden", "4"]
    code, stdout, _ = run(capsys, "digits", "--data", str(tmp_path), *arguments, "--out", str(out))
    assert code == 0
    assert "was not judged" in " ".join(stdout.split())
    assert not (out / "batches.png").exists()


def test_digits_says_what_was_more_than_there_is(tmp_path, capsys):
    write_digits(tmp_path)
    arguments = ["--rule", "adam", "--quick", "--steps", "5", "--batch-size", "1000", "--devices", "99"]
    code, stdout, _ = run(capsys, "digits", "--data", str(tmp_path), *arguments, "--out", str(tmp_path / "out"))
    assert code == 0
    stdout = " ".join(stdout.split())
    assert "The mini-batches had 140 examples, all that there are to train on." in stdout
    assert "4 of 99 devices had work: a run is a learning rate with a seed, and there were 4 runs." in stdout
    settings = json.loads((tmp_path / "out" / "results.json").read_text())["settings"]
    assert (settings["batch_size"], settings["devices"]) == (140, 4)


@pytest.mark.parametrize("error", [MemoryError("7 GB"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 7 GB")])
def test_digits_says_how_to_take_less_memory(error, tmp_path, capsys, monkeypatch):
    def run_out(*_):
        raise error

    monkeypatch.setattr(race, "run", run_out)
    code, stdout, stderr = run(capsys, "digits", "--out", str(tmp_path / "out"))
    assert (code, stdout) == (2, "")
    assert re.fullmatch("jaxopt-adam: .* a smaller --hidden, --batch-size or --steps, .*7 GB\\)\n", stderr)
    assert list(tmp_path.iterdir()) == []


def test_digits_makes_the_devices_that_it_divides_the_runs_among(tmp_path):
    script = "import jax; from jaxopt_adam.lab.cli import main\n"
    script += "try: main()\nfinally: print(jax.devices(), flush=True)"
    arguments = ["--quick", "--rule", "adam", "--steps", "5", "--devices", "3", "--out", str(tmp_path)]
    alone = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    command = [sys.executable, "-c", script, "digits", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=alone | {"JAX_PLATFORMS": "cpu"})
    assert done.stdout.splitlines()[-1] == "[CpuDevice(id=0), CpuDevice(id=1), CpuDevice(id=2)]"
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["settings"]["devices"] == 3


def test_digits_observes_the_steps(tmp_path, capsys):
    arguments = ["--rule", "sgd", "--rule", "adam", "--quick", "--steps", "20", "--out"]
    for out, more in (("plain", []), ("observed", ["--observe"])):
        assert run(capsys, "digits", *arguments, str(tmp_path / out), *more)[0] == 0
    assert (tmp_path / "observed" / "observed.png").read_bytes().startswith(b"\x89PNG")
    plain, observed = (
        json.loads((tmp_path / out / "results.json").read_text())["rules"] for out in ("plain", "observed")
    )
    for before, after in zip(plain, observed, strict=True):
        figures = after.pop("observed_at_best_learning_rate")
        assert figures["iterations"] == [5, 10, 15, 20]
        assert np.shape(figures["gradient_norm"]) == np.shape(figures["[0]['w']/update_norm"]) == (1, 4)
        assert all(norm > 0 for norm in figures["gradient_norm"][0])
        # To look changes nothing.
        del before["seconds"], after["seconds"]
        assert after == before
    assert "signal_to_noise" in figures


def test_digits_on_mnist(mnist, tmp_path, capsys):
    arguments = ["--rule", "sgd", "--rule", "adam", "--quick", "--steps", "60", "--out", str(tmp_path)]
    code, _, _ = run(capsys, "digits", "--data", str(mnist), *arguments)
    assert code == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["rules"][1]["final_test_accuracy"]["mean"] > 0.85


def test_landscape_and_averages_write_their_figures(tmp_path, capsys):
    arguments = ["--rule", "adam", "--steps", "5", "--animate", "--out", str(tmp_path)]
    assert run(capsys, "landscape", "beale", *arguments)[0] == 0
    code, stdout, _ = run(capsys, "averages", "--beta", "0.9", "--length", "20", "--out", str(tmp_path))
    assert code == 0
    assert stdout == "".join(f"Written: {tmp_path / 'averages'}.{end}\n" for end in ("png", "json"))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "landscape-beale.png", "landscape-beale.gif", "landscape-beale.json", "averages.png", "averages.json",
    }  # fmt: skip
    for name in ("landscape-beale.png", "averages.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", [[], ["digits"], ["landscape"], ["averages"]])
def test_help(command, capsys):
    code, stdout, stderr = run(capsys, *command, "--help")
    assert (code, stderr) == (0, "")
    assert "Usage" in stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "--rule", "adamm"], "'adamm' is unknown (did you mean adam?); known are batch, sgd"),
        (["digits", "--steps", "-5"], "'--steps': expected a whole number from 1 to 100,000, got '-5'"),
        (["digits", "--steps", "100001"], "'--steps': expected a whole number from 1 to 100,000, got '100001'"),
        (["digits", "--seeds", "0"], "'--seeds': expected a whole number from 1 to 100, got '0'"),
        (["digits", "--seeds", "two"], "'--seeds': expected a whole number from 1 to 100, got 'two'"),
        (
            ["digits", "--hidden", "99999999999"],
            "'--hidden': expected a whole number from 1 to 10,000, got '99999999999'",
        ),
        (["digits", "--batch-size", "1e9"], "'--batch-size': expected a whole number from 1 to 1,000,000, got '1e9'"),
        (["digits", "--learning-rate", "-1"], "expected a number above 0, at most 1,000,000, got '-1'"),
        (["digits", "--data", "nowhere"], "'--data': expected a folder, got 'nowhere', which does not exist"),
        (["digits", "--data", os.devnull], f"'--data': expected a folder, got '{os.devnull}', which is a file"),
        (["digits", "--data", "x" * 300], "which cannot be read: File name too long"),
        (["digits", "--data", ""], "'--data': expected a folder, got ''"),
        (["digits", "--data", ".", "--openml"], "not both"),
        (["digits", "--fast"], "--fast"),
        (["digits", "--devices", "0"], "'--devices': expected a whole number from 1 to 1,024, got '0'"),
        (["digits", "--devices", "9"], "'--devices': expected at most 8, the number of devices here, got 9"),
        (["landscape", "alps"], "'alps' is unknown"),
        (["landscape", "--rule", "batch"], "'batch' is unknown"),
        (["landscape", "--learning-rate", "x"], "expected a number above 0, at most 1,000,000, got 'x'"),
        (["landscape", "--start", "nan", "0"], "expected a number from -1,000,000 to 1,000,000, got 'nan'"),
        (["landscape", "--start", "1,2", "3"], "expected a number from -1,000,000 to 1,000,000, got '1,2'"),
        (["averages", "--beta", "1"], "expected a decay in [0, 1), got '1'"),
        (["averages", "--beta", "0.99999999999"], "expected a decay in [0, 1), got '0.99999999999'"),
        (["landscape", "--learning-rate", "1e-50"], "expected a number above 0, at most 1,000,000, got '1e-50'"),
        (["averages", "--beta", "abc"], "expected a decay in [0, 1), got 'abc'"),
        (["averages", "--noise", "-1"], "'--noise': expected a number from 0 to 1,000,000, got '-1'"),
        (["averages", "--seed", "9" * 5000], "'--seed': expected a whole number from 0 to 4,294,967,295, got '99"),
        (["averages", "--length", "1e3"], "'--length': expected a whole number from 2 to 100,000, got '1e3'"),
        (["averages", "--length", "99999999999"], "expected a whole number from 2 to 100,000, got '99999999999'"),
        (["averages", "--out", "/dev/null/report"], "/dev/null"),
        (["averages", "--out", ""], "'--out': expected a folder, got ''"),
        (["averages", "--out", "--seed", "3"], "'--out': expected a folder, got '--seed'"),
        (["memory", "--devices", "2.5"], "'--devices': expected a whole number from 1 to 4,096, got '2.5'"),
        (["race"], "race"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jax.devices()  # starts JAX, after which the number of devices is fixed
    code, stdout, stderr = run(capsys, *arguments)
    assert code == 2
    assert stdout == ""
    assert message in stderr
    assert stderr.startswith("jaxopt-adam: ")
    assert stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(averages, "average", lambda *_, **__: pytest.fail("it went on"))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("averages.png", "averages.json"):
        (tmp_path / "there" / name).mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    for out, message in {
        "file": "'file': is a file, where a folder should go",
        "file/x": "'file/x': Not a directory",
        "link": "'link': is a link to what does not exist",
        "link/x": "'link': is a link to what does not exist",
        "there": "'there/averages.png': is a folder, where a file should go",
        "x" * 300: f"'{'x' * 300}': File name too long",
    }.items():
        code, stdout, stderr = run(capsys, "averages", "--out", out)
        assert (code, stdout, stderr) == (2, "", f"jaxopt-adam: Invalid value for '--out': {message}\n")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_is_named(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(figures, "save", full)
    message = f"jaxopt-adam: Invalid value for '--out': '{tmp_path / 'new'}': No space left on device\n"
    assert run(capsys, "averages", "--out", str(tmp_path / "new")) == (2, "", message)
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_file_leaves_nothing_half_written(tmp_path, capsys):
    source = tmp_path / "data"
    source.mkdir()
    write_digits(source)
    path = source / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    code, _, stderr = run(capsys, "digits", "--data", str(source), "--out", str(tmp_path / "out"))
    assert code == 2
    assert "should hold 4,000 bytes" in stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("terminal", "width"), [(False, "200"), (True, "40"), (True, "200")])
def test_the_table_is_whole_in_a_file_and_on_a_narrow_terminal(terminal, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setattr(commands, "console", Console(force_terminal=terminal, color_system=None))
    _, stdout, _ = run(capsys, "memory", "--params", "7B", "--devices", "8")
    titles = ["bytes a parameter", "GB for 7,000,000,000 parameters", *(f"GB on each: {cut}" for cut in memory.CUTS)]
    assert [title.strip() for title in stdout.splitlines()[1].strip("┃").split("┃")] == ["what is kept", *titles]


@pytest.mark.parametrize(
    ("encoding", "arguments", "words"),
    [
        ("ascii", ["memory"], "a matrix of 4,096 x 4,096; 1 GB is 10^9 bytes"),
        ("latin-1", ["memory"], "a matrix of 4,096 × 4,096; 1 GB is 10^9 bytes"),
        ("ascii", ["digits", "--help"], "0.001, 0.003, ... 3"),
        ("ascii", ["averages", "--length", "2", "--out", "ü"], r"Written: \xfc/averages.png"),
        ("utf-8", ["averages", "--length", "2", "--out", "\udcff"], r"Written: \udcff/averages.png"),
    ],
)
def test_a_stream_takes_what_its_encoding_lacks(encoding, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    stream.flush()
    assert words in " ".join(stream.buffer.getvalue().decode(encoding).split())  # pyright: ignore


@pytest.mark.parametrize(
    ("redirection", "arguments", "code", "stdout", "stderr"),
    [
        (">/dev/full", "--version", 2, "", "jaxopt-adam: standard output: No space left on device\n"),
        ("2>/dev/full", "race", 2, "", ""),
        ("2>&-", "race", 2, "", ""),
        (">&-", "--version", 0, "", ""),
    ],
)
def test_a_stream_may_be_full_or_closed(redirection, arguments, code, stdout, stderr):
    command = f"exec {sys.executable} -c 'from jaxopt_adam.lab.cli import main; main()' {arguments} {redirection}"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=buffered, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, stdout, stderr)


def test_no_words_at_all_are_a_call_for_help(capsys):
    code, stdout, stderr = run(capsys)
    assert (code, stderr) == (0, "")
    assert "landscape" in stdout


def test_the_best_learning_rate_at_the_edge_is_marked():
    outcome = outcome_of([[0.1, 0.5], [0.1, 0.9]], [0, 10])
    assert outcome.at_edge
    assert report.row(outcome)[1] == "0.1 (edge)"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_race_leaves_nothing_behind(tmp_path, number):
    out = tmp_path / "out"
    script = f"import signal, jaxopt_adam_command as command; signal.signal({number:d}, signal.SIG_DFL); command.main()"
    command = [sys.executable, "-c", script, "digits", "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(out.glob(".unfinished-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert stderr == "jaxopt-adam: interrupted; nothing was written\n"
    assert not out.exists()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_imports(number):
    """In an import, within a callback that would lose an exception, and before anything large is imported."""
    script = f"""
import gc, os, signal, sys
from jaxopt_adam_command import main
signal.signal({number:d}, signal.default_int_handler)
assert not {{"jax", "numpy", "jaxopt_adam"}} & set(sys.modules)
gc.callbacks.append(lambda *_: os.kill(os.getpid(), {number:d}))
class Finder:
    def find_spec(name, *_):
        if name == "jaxopt_adam":
            gc.collect()
            print("went on")
sys.meta_path.insert(0, Finder)
main()"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (128 + number, "")
    assert done.stderr == "jaxopt-adam: interrupted; nothing was written\n"


def test_an_ignored_signal_stays_ignored(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN if number == signal.SIGHUP else None)
    handlers = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(cli, "main", lambda: None)
    for listen in (interrupt.listen, jaxopt_adam_command.main):
        handlers.clear()
        listen()
        assert {signal.SIGINT, signal.SIGTERM} <= set(handlers)
        assert signal.SIGHUP not in handlers


@pytest.fixture
def not_ignored():
    """SIGINT as in a terminal; a shell's background job ignores it, and so does the command then."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("arguments", "module", "name"),
    [
        (["memory", "--devices", "2"], memory, "measure"),
        (["landscape", "sphere"], landscape, "walk"),
        (["averages"], averages, "average"),
    ],
)
@pytest.mark.usefixtures("not_ignored")
def test_a_signal_ends_the_work(arguments, module, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(interrupt, "_received", [])
    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.setattr(figures, "save", lambda *_: pytest.fail("it went on"))
    work, calls = getattr(module, name), []

    def interrupted(*given, **options):
        calls.append(given)
        signal.raise_signal(signal.SIGINT)
        return work(*given, **options)

    monkeypatch.setattr(module, name, interrupted)
    assert run(capsys, *arguments) == (130, "", "jaxopt-adam: interrupted; nothing was written\n")
    assert len(calls) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_its_version(capsys):
    assert run(capsys, "--version") == (0, f"jaxopt-adam {jaxopt_adam.__version__} with jax {jax.__version__}\n", "")


def test_without_the_extra_the_command_names_it():
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    extra = [re.split("[<>=]", each)[0] for each in pyproject["project"]["optional-dependencies"]["lab"]]
    assert {each.replace("scikit-learn", "sklearn") for each in extra} == cli._LAB
    # A module in place of which None is known cannot be imported, and is not found.
    for module, words in (("typer", []), ("matplotlib", ["--version"]), ("sklearn", ["digits", "--quick"])):
        script = f"import sys; sys.modules[{module!r}] = None; from jaxopt_adam.lab.cli import main; main({words})"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        expected = (
            f'jaxopt-adam: {module} is not installed; the command needs the extra lab: pip install "jaxopt-adam[lab]"'
        )
        assert (done.returncode, done.stdout, done.stderr) == (2, "", expected + "\n")


def test_another_missing_module_is_not_taken_for_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxopt_adam.lab.commands", None)
    with pytest.raises(ModuleNotFoundError, match=r"jaxopt_adam\.lab\.commands"):
        main([])
