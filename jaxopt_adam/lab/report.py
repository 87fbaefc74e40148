"""The report of a race: a page, its figures, and the figures' numbers."""

import html
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxopt_adam.lab import figures, styles
from jaxopt_adam.lab.claim import Comparison, telling
from jaxopt_adam.lab.data import Digits
from jaxopt_adam.lab.output import write_json
from jaxopt_adam.lab.race import Outcome, Settings

COLUMNS = {
    "rule": "rule",
    "best learning rate": "best rate",
    "iterations to 90 %": "to 90 %",
    "iterations to 94 %": "to 94 %",
    "final accuracy (%)": "final (%)",
    "seconds": "seconds",
}
"""The columns of the table: their titles on the page, and shorter titles for a terminal."""

STYLES = f"""\
:root {{ color-scheme: light; {styles.variables("light")} }}
@media screen and (prefers-color-scheme: dark) {{
  :root {{ color-scheme: dark; {styles.variables("dark")} }}
}}
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem;
  background: var(--background); color: var(--ink); overflow-wrap: break-word; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid var(--grid); text-align: right; }}
td {{ white-space: nowrap; }}
th:first-child {{ text-align: left; }}
figure {{ margin: 2.5rem 0; }}
figure svg {{ display: block; width: 100%; height: auto; margin: auto; }}
figure svg text {{ font-family: system-ui, sans-serif !important; fill: var(--ink); }}
.narrow {{ display: none; max-width: 28rem; margin: auto; }}
@media (max-width: 52rem) {{
  .wide {{ display: none; }}
  .narrow {{ display: block; }}
  table {{ font-size: .875rem; }}
  th, td {{ padding: .3rem .35rem; }}
}}
.verdict {{ font-size: 1.15rem; border-left: .3rem solid var(--adam); padding-left: 1rem; }}"""


def row(outcome: Outcome) -> tuple[str, ...]:
    """One line of the table: the results of an entrant on the test data, at its best learning rate."""
    final = 100 * outcome.test[outcome.best, :, -1]
    reached = [outcome.iterations_to(accuracy) for accuracy in (0.90, 0.94)]
    return (
        outcome.entry.name,
        f"{outcome.learning_rates[outcome.best]:g}{' (edge)' if outcome.at_edge else ''}",
        *("never" if iterations is None else f"{iterations:g}" for iterations in reached),
        f"{final.mean():.1f} ± {final.std():.1f}",
        f"{outcome.seconds:.1f}",
    )


def write(
    folder: Path,
    digits: Digits,
    settings: Settings,
    outcomes: Sequence[Outcome],
    batches: Mapping[str, Outcome],
    comparisons: Sequence[Comparison],
    verdict: str,
) -> None:
    """Write ``report.html``, ``results.json`` and the figures into `folder`."""
    pictures = {
        "accuracy": (partial(figures.accuracy_figure, outcomes), "Test accuracy of each rule against iterations"),
        "cost": (partial(figures.cost_figure, outcomes), "Training cost of each rule against iterations"),
        "rates": (
            partial(figures.rates_figure, outcomes),
            "Final test accuracy of each rule against the learning rate",
        ),
    }
    if any(outcome.observed for outcome in outcomes):
        pictures["observed"] = (
            partial(figures.observed_figure, outcomes),
            "Norms of gradients and updates, their ratio to the weights and other figures of each rule's steps",
        )
    if batches:
        pictures["batches"] = (
            partial(figures.batches_figure, batches),
            "Cost of gradient descent with three batch sizes",
        )
    shown = []
    for name, (draw, alternative) in pictures.items():
        wide = draw()
        figures.save(wide, folder / f"{name}.png")
        shown.append(_shown(name, wide, draw(narrow=True), alternative))
    write_json(folder / "results.json", _results(digits, settings, outcomes, batches, comparisons, verdict))
    page = _page(digits, settings, outcomes, comparisons, verdict, "\n".join(shown))
    (folder / "report.html").write_text(page, encoding="utf-8")


def _shown(name: str, wide: Figure, narrow: Figure, alternative: str) -> str:
    """A figure of the page, for a wide screen and for a narrow one; the styles show one of the two."""
    drawings = "".join(
        f'<div class="{width}">{figures.svg(figure, f"{name}-{width}")}</div>'
        for width, figure in (("wide", wide), ("narrow", narrow))
    )
    return f'<figure id="{name}" role="img" aria-label="{html.escape(alternative)}">{drawings}</figure>'


def _results(
    digits: Digits,
    settings: Settings,
    outcomes: Sequence[Outcome],
    batches: Mapping[str, Outcome],
    comparisons: Sequence[Comparison],
    verdict: str,
) -> dict[str, Any]:
    def entrant(outcome: Outcome) -> dict[str, Any]:
        best = outcome.best
        final = outcome.test[best, :, -1]
        return {
            "rule": outcome.entry.name,
            "arguments": dict(outcome.entry.arguments),
            "batch_size": outcome.entry.batch_size or digits.sizes["train"],
            "best_learning_rate": float(outcome.learning_rates[best]),
            "best_learning_rate_is_at_the_edge_of_the_grid": outcome.at_edge,
            "iterations_to_90_percent": outcome.iterations_to(0.90),
            "iterations_to_94_percent": outcome.iterations_to(0.94),
            "final_test_accuracy": {"mean": float(final.mean()), "spread": float(final.std()), "seeds": final.tolist()},
            "seconds": outcome.seconds,
            "learning_rates": outcome.learning_rates.tolist(),
            "final_test_accuracy_by_learning_rate": outcome.test[..., -1].mean(axis=1).tolist(),
            "final_validation_accuracy_by_learning_rate": outcome.validation[..., -1].mean(axis=1).tolist(),
            "at_best_learning_rate": {
                "iterations": outcome.at.tolist(),
                "test_accuracy": np.round(outcome.test[best].astype(float), 6).tolist(),
                "cost_by_iteration": np.round(outcome.cost[best].astype(float), 6).tolist(),
            },
            **observed(outcome),
        }

    def observed(outcome: Outcome) -> dict[str, Any]:
        if not outcome.observed:
            return {}
        figures = {name: values[outcome.best].astype(float).tolist() for name, values in outcome.observed.items()}
        return {"observed_at_best_learning_rate": {"iterations": outcome.at[1:].tolist(), **figures}}

    return {
        "data": {"name": digits.name, **digits.sizes},
        "settings": {
            "steps": settings.steps,
            "seeds": settings.seeds,
            "batch_size": settings.batch_size,
            "hidden": settings.hidden,
            "devices": settings.devices,
        },
        "verdict": verdict,
        "comparisons": [
            {
                "setting": each.setting,
                "held": each.held,
                "gradient_descent": {
                    "learning_rate": each.descent_rate,
                    "iterations": each.iterations,
                    "test_accuracy": each.descent_accuracy,
                },
                "adam": {
                    "learning_rate": each.adam_rate,
                    "iterations_to_94_percent": each.adam_iterations,
                    "test_accuracy_after_a_third_of_the_iterations": each.adam_accuracy,
                },
                "sentence": each.sentence,
            }
            for each in comparisons
        ],
        "rules": [entrant(outcome) for outcome in outcomes],
        "batch_sizes": {name: entrant(outcome) for name, outcome in batches.items()},
    }


def _page(
    digits: Digits,
    settings: Settings,
    outcomes: Sequence[Outcome],
    comparisons: Sequence[Comparison],
    verdict: str,
    shown: str,
) -> str:
    heads = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in COLUMNS)
    lines = "\n".join(
        "<tr>"
        + f'<th scope="row">{html.escape(cells[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells[1:])
        + "</tr>"
        for cells in map(row, outcomes)
    )
    first, more = (
        "".join(f"<li>{html.escape(each.sentence)}</li>" for each in comparisons if telling(each, comparisons) is which)
        for which in (True, False)
    )
    sizes = digits.sizes
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>The race on handwritten digits</title>
<style>
{STYLES}
</style>
</head>
<body>
<h1>The race on handwritten digits</h1>
<p class="verdict">{html.escape(verdict)}</p>
<ul>{first}</ul>
<details><summary>At the other learning rates</summary><ul>{more}</ul></details>
<h2>Each rule at its best learning rate</h2>
<div class="scroll" tabindex="0" role="region" aria-label="The results of each rule">
<table>
<thead><tr>{heads}</tr></thead>
<tbody>
{lines}
</tbody>
</table>
</div>
<p>{html.escape(digits.name)}: {sizes["train"]:,} images to train on, {sizes["validation"]:,} to choose each rule's
learning rate, {sizes["test"]:,} to test on. A network with one hidden layer of {settings.hidden} units,
{settings.steps} iterations, mini-batches of {settings.batch_size}, {settings.seeds} seeds. Every rule was tried with
the learning rates {", ".join(f"{rate:g}" for rate in settings.learning_rates)}. A best rate at the edge of these
is marked, because a better one may be beyond. Accuracies are those on the test data, means over the seeds ± their
standard deviation; the seconds are those of the whole grid, compilation included.</p>
<h2>Figures</h2>
{shown}
</body>
</html>
"""
