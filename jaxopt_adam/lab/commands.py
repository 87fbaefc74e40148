"""The commands of ``jaxopt-adam``; :mod:`jaxopt_adam.lab.cli` runs them."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import jax
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

import jaxopt_adam
from jaxopt_adam.lab import animation, arguments, claim, data, figures, interrupt, output, race, report
from jaxopt_adam.lab import averages as averages_lab
from jaxopt_adam.lab import explain as explain_lab
from jaxopt_adam.lab import landscape as landscape_lab
from jaxopt_adam.lab import memory as memory_lab

app = typer.Typer(
    add_completion=False,
    help="Gradient descent and Adam, run: races on handwritten digits, paths down landscapes, weighted averages; and "
    "the memory that training takes.",
)


console = Console()
if not console.is_terminal:
    console = Console(width=120)  # a file has no width, and its tables should have all columns


MOST_DEVICES = 1024  # virtual ones have threads of their own
# So that none of them alone takes more than 5 GB of memory with the usual data.
MOST_STEPS = 100_000
MOST_SEEDS = 100
MOST_UNITS = 10_000
MOST_EXAMPLES = 1_000_000
MOST_VALUES = 100_000
MOST_SEED = 2**32 - 1


def print_version(wanted: bool) -> None:
    """Print the versions of the library and of JAX, and end."""
    if wanted:
        console.print(f"jaxopt-adam {jaxopt_adam.__version__} with jax {jax.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def command(
    _: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=print_version),
    ] = False,
) -> None:
    """The command itself, whose help is that of `app`."""


Out = Annotated[
    Path,
    arguments.option(arguments.new_folder, "The folder to write; files of the same names are replaced.", "FOLDER"),
]


@app.command()
def digits(
    folder: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="A folder of IDX files, the format of MNIST, gzipped or not: train-images-idx3-ubyte and "
            "train-labels-idx1-ubyte, the same with t10k in place of train, or both pairs. At least 20 images in each, "
            "of any one size, with labels from 0 to 9.",
            parser=arguments.folder,
            metavar="FOLDER",
        ),
    ] = None,
    openml: Annotated[bool, typer.Option("--openml", help="Download the whole of MNIST from OpenML.")] = False,
    rule: Annotated[
        list[str] | None,
        arguments.option(
            arguments.known(race.RULES),
            f"A rule to race: {', '.join(race.RULES)}. Repeat for several; all of them by default.",
            "NAME",
        ),
    ] = None,
    learning_rate: Annotated[
        list[float] | None,
        arguments.option(
            arguments.learning_rate,
            "A learning rate to try, above 0. Repeat for several; 0.001, 0.003, … 3 by default.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        arguments.option(
            arguments.whole_number(1, MOST_STEPS), f"Iterations, 1 to {MOST_STEPS:,}; 300 by default, 100 if quick."
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        arguments.option(
            arguments.whole_number(1, MOST_SEEDS),
            f"Initial weights and orders of the examples to try, 1 to {MOST_SEEDS}; 3 by default, 1 if quick.",
        ),
    ] = None,
    batch_size: Annotated[
        int,
        arguments.option(
            arguments.whole_number(1, MOST_EXAMPLES),
            f"Examples in a mini-batch, 1 to {MOST_EXAMPLES:,}; all of them if there are fewer.",
        ),
    ] = 64,
    hidden: Annotated[
        int,
        arguments.option(
            arguments.whole_number(1, MOST_UNITS), f"Units in the network's hidden layer, 1 to {MOST_UNITS:,}."
        ),
    ] = 32,
    quick: Annotated[bool, typer.Option("--quick", help="A short race, with four learning rates.")] = False,
    observe: Annotated[
        bool, typer.Option("--observe", help="Add figures of what the steps did: norms, ratios, signal to noise.")
    ] = False,
    devices: Annotated[
        int,
        arguments.option(
            arguments.whole_number(1, MOST_DEVICES),
            f"How many devices share the runs, 1 to {MOST_DEVICES:,}. A run is a learning rate with a seed. "
            "Without an accelerator they are virtual devices of the CPU.",
        ),
    ] = 1,
    out: Out = Path("report"),
) -> None:
    """Race the rules on handwritten digits, each at its own best learning rate, and judge the article's claim.

    Without --data or --openml it uses the 1,797 digits that come with scikit-learn.
    """
    if folder is not None and openml:
        raise typer.BadParameter("give --data or --openml, not both")
    usual = race.Settings(learning_rates=(0.003, 0.03, 0.3, 3.0), steps=100, seeds=1) if quick else race.Settings()
    settings = race.Settings(
        learning_rates=tuple(sorted(set(learning_rate or usual.learning_rates))),
        seeds=seeds or usual.seeds,
        steps=steps or usual.steps,
        batch_size=batch_size,
        hidden=hidden,
        observe=observe,
    )
    runs = len(settings.learning_rates) * settings.seeds
    settings = dataclasses.replace(settings, devices=min(devices, runs))
    _find_devices(settings.devices)
    names = list(dict.fromkeys(rule or race.RULES))
    files = ["report.html", "results.json", "accuracy.png", "cost.png", "rates.png"]
    files += ["observed.png"] * observe + ["batches.png"] * ({"batch", "sgd"} <= set(names))
    with _writing(out, files) as unfinished:
        images = _images(folder, openml=openml)
        settings = dataclasses.replace(settings, batch_size=min(batch_size, images.sizes["train"]))
        entrants = race.entries(names, settings)
        if {"batch", "sgd"} <= set(names):
            entrants.append(race.Entry("gradient descent by single examples", *race.RULES["sgd"][1:], batch_size=1))
        finished = dict(zip([*names, "single"], _race(entrants, images, settings), strict=False))
        outcomes = [finished[name] for name in names]
        batches = {}
        if "single" in finished:
            batches = {
                f"all {images.sizes['train']:,} examples": finished["batch"],
                f"mini-batches of {finished['sgd'].entry.batch_size}": finished["sgd"],
                "single examples": finished["single"],
            }
        comparisons = claim.compare(finished["sgd"], finished["adam"]) if {"sgd", "adam"} <= set(names) else []
        verdict = claim.verdict(comparisons, images.name)
        report.write(unfinished, images, settings, outcomes, batches, comparisons, verdict)
    _print_table(tuple(report.COLUMNS.values()), [report.row(outcome) for outcome in outcomes])
    sentences = [each.sentence for each in comparisons if claim.telling(each, comparisons)]
    if batch_size > settings.batch_size and names != ["batch"]:
        sentences.append(f"The mini-batches had {settings.batch_size:,} examples, all that there are to train on.")
    if devices > runs:
        sentences.append(
            f"{runs} of {devices:,} devices had work: a run is a learning rate with a seed, and there were {runs} runs."
        )
    for sentence in (*sentences, verdict):
        console.print(sentence, highlight=False)
    _print_paths(out, files)


@app.command()
def landscape(
    name: Annotated[
        str,
        typer.Argument(
            help=f"The function: {', '.join(landscape_lab.LANDSCAPES)}.",
            parser=arguments.known(landscape_lab.LANDSCAPES),
            metavar="NAME",
        ),
    ] = "rosenbrock",
    rule: Annotated[
        list[str] | None,
        arguments.option(
            arguments.known(landscape_lab.RULES),
            f"A rule that walks: {', '.join(landscape_lab.RULES)}. Repeat for several; all of them by default.",
            "NAME",
        ),
    ] = None,
    learning_rate: Annotated[
        list[float] | None,
        arguments.option(
            arguments.learning_rate,
            "A learning rate to try, above 0. Repeat for several; each rule takes the best. 10⁻⁵ to 10 by default.",
        ),
    ] = None,
    start: Annotated[
        tuple[float, float] | None,
        arguments.option(
            arguments.coordinate,
            f"The first point, two numbers from {-arguments.MOST:,} to {arguments.MOST:,}, such as "
            "--start -1.2 1; the usual one by default.",
            "X Y",
        ),
    ] = None,
    steps: Annotated[
        int,
        arguments.option(arguments.whole_number(1, MOST_STEPS), f"How many steps, 1 to {MOST_STEPS:,}."),
    ] = 200,
    animate: Annotated[
        bool,
        typer.Option(
            "--animate",
            help="Write a moving picture as well, a GIF. docs/images/paths.gif is that of "
            "bowl --steps 60 --rule sgd --rule momentum --rule rmsprop --rule adam.",
        ),
    ] = False,
    out: Out = Path("report"),
) -> None:
    """Draw the path of each rule down a function of two variables, over its contours."""
    chosen = landscape_lab.LANDSCAPES[name]
    files = [f"landscape-{name}.{end}" for end in ("png", "gif", "json") if animate or end != "gif"]
    with _writing(out, files) as unfinished:
        walks = []
        for each in dict.fromkeys(rule or landscape_lab.RULES):
            rates = learning_rate or landscape_lab.LEARNING_RATES
            walks.append(landscape_lab.walk(chosen, each, start=start, steps=steps, learning_rates=rates))
            interrupt.check()
        figures.save(landscape_lab.figure(chosen, walks), unfinished / f"landscape-{name}.png")
        if animate:
            animation.save(chosen, walks, unfinished / f"landscape-{name}.gif")
        output.write_json(
            unfinished / f"landscape-{name}.json",
            {
                "landscape": chosen.title,
                "minima": [list(minimum) for minimum in chosen.minima],
                "walks": [
                    {
                        "rule": each.rule,
                        "learning_rate": each.learning_rate,
                        "path": each.path.tolist(),
                        "values": each.values.tolist(),
                    }
                    for each in walks
                ],
            },
        )
    _print_table(
        ("rule", "best learning rate", "x", "y", "value"),
        [
            (
                each.rule,
                f"{each.learning_rate:g}" if math.isfinite(each.values[-1]) else "all diverged",
                *(f"{number:.4f}" for number in each.path[-1]),
                f"{each.values[-1]:.3g}",
            )
            for each in walks
        ],
    )
    _print_paths(out, files)


@app.command()
def averages(
    beta: Annotated[
        list[float] | None,
        arguments.option(arguments.decay, "A decay in [0, 1). Repeat for several; 0.5, 0.9 and 0.98 by default."),
    ] = None,
    length: Annotated[
        int,
        arguments.option(arguments.whole_number(2, MOST_VALUES), f"How many values, 2 to {MOST_VALUES:,}."),
    ] = 200,
    noise: Annotated[
        float,
        arguments.option(arguments.size, f"The standard deviation of the noise, 0 to {arguments.MOST:,}."),
    ] = 3.0,
    seed: Annotated[
        int,
        arguments.option(arguments.whole_number(0, MOST_SEED), f"The seed of the noise, 0 to {MOST_SEED:,}."),
    ] = 0,
    out: Out = Path("report"),
) -> None:
    """Draw exponentially weighted averages of a noisy signal, with and without bias correction."""
    files = ["averages.png", "averages.json"]
    with _writing(out, files) as unfinished:
        result = averages_lab.average(tuple(beta or (0.5, 0.9, 0.98)), length=length, noise=noise, seed=seed)
        interrupt.check()
        figures.save(figures.averages_figure(result), unfinished / "averages.png")
        output.write_json(
            unfinished / "averages.json",
            {
                "signal": result.signal.tolist(),
                "without_noise": result.truth.tolist(),
                "averages": [
                    {"decay": each, "biased": biased.tolist(), "debiased": debiased.tolist()}
                    for each, biased, debiased in zip(result.decays, result.biased, result.debiased, strict=True)
                ],
            },
        )
    _print_paths(out, files)


@app.command()
def explain(out: Out = Path("report")) -> None:
    """Write the article as one page with a slider for everything, computed on this machine."""
    files = ["explain.html"]
    with _writing(out, files) as unfinished:
        with _progress() as progress:
            whole = progress.add_task("the page", total=len(explain_lab.SECTIONS))

            def started(name: str) -> None:
                progress.update(whole, description=name, completed=list(explain_lab.SECTIONS).index(name))

            page = explain_lab.build(started)
        (unfinished / "explain.html").write_text(page, encoding="utf-8")
    _print_paths(out, files)


@app.command()
def memory(
    params: Annotated[
        float,
        arguments.option(
            arguments.number_of_parameters,
            "How many parameters, 1 to 1e15, written as 7e9, 7B or 350M; a billion by default.",
            show_default=False,
        ),
    ] = 1e9,
    optimizer: Annotated[
        str,
        arguments.option(arguments.known(memory_lab.RULES), f"The rule: {', '.join(memory_lab.RULES)}.", "NAME"),
    ] = "adamw",
    moments: Annotated[
        str,
        arguments.option(
            arguments.known(memory_lab.MOMENTS), f"The storage of its moments: {', '.join(memory_lab.MOMENTS)}.", "NAME"
        ),
    ] = "float32",
    weights: Annotated[
        str,
        arguments.option(
            arguments.known(memory_lab.WEIGHTS),
            f"The storage of the weights: {', '.join(memory_lab.WEIGHTS)}. With +8 or +16 bits of master weights, "
            "or rounded at random.",
            "NAME",
        ),
    ] = "float32",
    gradients: Annotated[
        str | None,
        arguments.option(
            arguments.known(memory_lab.DTYPES),
            f"The dtype of the gradients: {', '.join(memory_lab.DTYPES)}; that of the weights by default.",
            "NAME",
        ),
    ] = None,
    accumulate: Annotated[
        int,
        arguments.option(
            arguments.whole_number(1, 1_000_000),
            "How many batches an update is made of. With more than one, their mean gradient is kept in the state.",
        ),
    ] = 1,
    devices: Annotated[
        int | None,
        arguments.option(
            arguments.whole_number(1, memory_lab.MOST_DEVICES),
            f"How many devices share the work, 1 to {memory_lab.MOST_DEVICES:,}; they need not be there.",
        ),
    ] = None,
    cut: Annotated[
        list[str] | None,
        arguments.option(
            arguments.known(memory_lab.CUTS),
            "How training is divided among the devices. "
            + " ".join(f"{name}: {text}." for name, text in memory_lab.CUTS.items())
            + " Needs --devices. Repeat for several; all of them by default.",
            "NAME",
        ),
    ] = None,
) -> None:
    """Say how many bytes training takes for each parameter, and how many parameters fit on a device, or on several."""
    if cut and devices is None:
        raise typer.BadParameter("needs --devices, the number of devices", param_hint="'--cut'")
    cuts = list(dict.fromkeys(cut or memory_lab.CUTS)) if devices else []
    measure = functools.partial(
        memory_lab.measure, optimizer, moments, weights, gradients, accumulate=accumulate, devices=devices or 1
    )
    try:
        measured = []
        for each in ("none", *cuts):
            measured.append(measure(cut=each))
            interrupt.check()
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="'--moments'") from error
    for parts in measured:
        total = sum(parts.values())
        parts |= {"the whole state": total - parts["weights"] - parts["gradients"], "in all": total}
    whole, *on_each = measured
    _print_table(
        (
            "what is kept",
            "bytes a parameter",
            f"GB for {params:,.15g} parameters",
            *(f"GB on each: {each}" for each in cuts),
        ),
        [
            (name, f"{size:.3f}", *(_amount(params * parts[name] / 1e9) for parts in measured))
            for name, size in whole.items()
        ],
    )
    titles = [f"billions that fit: {each}" for each in cuts] or ["parameters that fit, in billions"]
    _print_table(
        ("memory of a device", *titles),
        [
            (f"{size} GB", *(f"{math.floor(100 * size / parts['in all']) / 100:,.2f}" for parts in on_each or [whole]))
            for size in memory_lab.DEVICES
        ],
    )
    rows, columns = memory_lab.matrix(devices or 1)
    sentences = [f"{each}: on each of {devices:,} devices, {memory_lab.CUTS[each]}." for each in cuts if devices]
    if accumulate > 1:
        sentences.append(f"An update is made of {accumulate:,} batches; acc_grads is their mean gradient, in float32.")
    for sentence in (
        *sentences,
        f"Measured on the arrays that {optimizer} makes for a matrix of {rows:,} × {columns:,}; 1 GB is 10⁹ bytes.",
        "Weights, gradients and the optimizer's state are counted; activations are not.",
    ):
        console.print(sentence, highlight=False, soft_wrap=True)


def _amount(number: float) -> str:
    return f"{number:,.2f}" if number >= 1 else f"{number:.3g}"


@contextlib.contextmanager
def _writing(out: Path, files: list[str]) -> Iterator[Path]:
    """A folder for files that move into `out` together; errors name the option."""
    try:
        with output.new_folder(out, files) as unfinished:
            yield unfinished
    except OSError as error:
        where = str(error.filename2 or error.filename or out)
        raise typer.BadParameter(f"{where!r}: {error.strerror or error}", param_hint="'--out'") from error


def _images(folder: Path | None, *, openml: bool) -> data.Digits:
    if folder is None:
        return data.from_openml() if openml else data.embedded()
    try:
        return data.from_folder(folder)
    except (data.DataError, OSError) as error:
        raise typer.BadParameter(str(error), param_hint="'--data'") from error


def _find_devices(number: int) -> None:
    """Ensure that there are so many devices; those of the CPU are made if JAX has not started yet."""
    if number == 1:
        return
    with contextlib.suppress(RuntimeError):  # which says that JAX has started
        jax.config.update("jax_num_cpu_devices", number)
    found = len(jax.devices())
    if found < number:
        raise typer.BadParameter(
            f"expected at most {found}, the number of devices here, got {number}", param_hint="'--devices'"
        )


@contextlib.contextmanager
def _enough_memory() -> Iterator[None]:
    """An error that says how a race takes less memory, if it took all."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise MemoryError(
                "the race needs more memory than there is; it needs less with a smaller --hidden, --batch-size or "
                f"--steps, or with fewer --learning-rate or --seeds ({error})"
            ) from error
        raise


def _progress() -> Progress:
    """A progress bar on standard error, if that is a terminal."""
    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    return Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)


def _race(entrants: list[race.Entry], images: data.Digits, settings: race.Settings) -> list[race.Outcome]:
    """Run the race with a progress bar."""
    outcomes = []
    with _enough_memory(), _progress() as progress:
        whole = progress.add_task("the race", total=len(entrants))
        for index, entry in enumerate(entrants):
            progress.update(whole, description=entry.name)
            for news in race.run(entry, images, settings):
                interrupt.check()
                if isinstance(news, race.Outcome):
                    outcomes.append(news)
                else:
                    progress.update(whole, completed=index + news)
    return outcomes


def _print_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # A table that is wider than the terminal is better than one without its last columns.
    wide = Console(width=1000)
    wide.width = max(console.width, wide.measure(table).maximum)
    wide.print(table, soft_wrap=True)


def _print_paths(out: Path, files: list[str]) -> None:
    """Print the paths of files, each on one line even in a narrow terminal."""
    for name in files:
        console.print(f"Written: {out / name}", highlight=False, soft_wrap=True)
