"""Section 7: the race on handwritten digits, and the article's claim."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxopt_adam.lab import claim, data, interrupt, race, styles
from jaxopt_adam.lab.explain.drawing import line, number, ticks
from jaxopt_adam.lab.explain.section import Control, Field, Plot, Section, Trace

RULES = ("sgd", "momentum", "rmsprop", "adam")
SETTINGS = race.Settings()  # those of the command, so that both come to one verdict
HIGH = 90
"""A high accuracy after the last iteration, in per cent."""
LOOKS = {rule: (rule.replace("sgd", "descent"), styles.RULES[rule].marker, styles.RULES[rule].dash) for rule in RULES}


@functools.cache
def _run(rule: str, settings: race.Settings) -> race.Outcome:
    (entry,) = race.entries([rule], settings)
    for news in race.run(entry, data.embedded(), settings):
        interrupt.check()
        if isinstance(news, race.Outcome):
            return news
    raise AssertionError("a race ends with an outcome")


def _single_rate(rate: float) -> race.Settings:
    # As many rows as the grid has, so that it is the same program. The last bit of a matrix product depends on the
    # number of rows. At the largest rates training is chaotic, and this bit decides its end.
    return dataclasses.replace(SETTINGS, learning_rates=(rate,) * len(SETTINGS.learning_rates))


def _accuracy(outcome: race.Outcome) -> np.ndarray:
    return 100 * outcome.test.mean(axis=1)


def single(learning_rate: float, best: bool) -> dict[str, np.ndarray]:
    """The fields for one learning rate, or with `best` for each rule's own, without those of all learning rates."""
    found: dict[str, np.ndarray] = {}
    chosen: list[tuple[float, float]] = []
    for rule in RULES:
        rate = float(_run(rule, SETTINGS).learning_rates[_run(rule, SETTINGS).best]) if best else learning_rate
        outcome = _run(rule, _single_rate(rate))
        found |= {"iterations": outcome.at, f"{rule}-accuracy": _accuracy(outcome)[0]}
        chosen.append((rate, _accuracy(outcome)[0, -1]))
    return found | {"chosen-x": np.array(chosen)[:, 0], "chosen-y": np.array(chosen)[:, 1]}


def fields() -> dict[str, Field]:
    """The fields for all learning rates."""
    outcomes = {rule: _run(rule, SETTINGS) for rule in RULES}
    rates = np.array(SETTINGS.learning_rates)
    found = {
        "iterations": Field((), outcomes["adam"].at),
        "rates": Field((), rates),
    }
    equal_rates = np.arange(len(rates))[:, None] * np.ones(len(RULES), int)
    best_rates = np.array([outcome.best for outcome in outcomes.values()]) * np.ones_like(equal_rates)
    places = np.stack([equal_rates, best_rates])  # of what the first figure shows: (best, learning_rate, rule)
    finals = np.stack([_accuracy(outcome)[:, -1] for outcome in outcomes.values()])
    found["chosen-x"] = Field(("best", "learning_rate"), rates[places])
    found["chosen-y"] = Field(("best", "learning_rate"), finals[np.arange(len(RULES)), places])
    for rule, outcome in outcomes.items():
        at_rate = _accuracy(outcome)
        own = np.broadcast_to(at_rate[outcome.best], at_rate.shape)
        found[f"{rule}-accuracy"] = Field(("best", "learning_rate"), np.stack([at_rate, own]))
        found[f"{rule}-final"] = Field((), at_rate[:, -1])
    *equal, own = claim.compare(outcomes["sgd"], outcomes["adam"])
    found["sentence"] = Field(
        ("best", "learning_rate"),
        [[_typeset(each.sentence) for each in equal], [_own_best(outcomes, own)] * len(equal)],
    )
    return found


def _own_best(outcomes: Mapping[str, race.Outcome], comparison: claim.Comparison) -> str:
    """The sentence on each rule at its own best learning rate, with all of these rates."""
    rates = ", ".join(
        f"{race.RULES[rule][0]} {number(float(outcome.learning_rates[outcome.best]))}"
        for rule, outcome in outcomes.items()
    )
    _, _, judgement = comparison.sentence.partition(": ")
    return _typeset(f"At each rule's best learning rate ({rates}): {judgement}")


def _typeset(text: str) -> str:
    """A sentence of the command, with the apostrophes of the page."""
    return text.replace("'", "’")


def facts() -> dict[str, str]:
    """Numbers and sentences for the text."""
    images = data.embedded()
    comparisons = claim.compare(_run("sgd", SETTINGS), _run("adam", SETTINGS))
    sizes = images.sizes
    high = {rule: _accuracy(_run(rule, SETTINGS))[:, -1] > HIGH for rule in RULES}
    finals = {f"race-final {rule}": _run(rule, SETTINGS) for rule in ("momentum", "adam")}
    return {name: f"{_accuracy(each)[each.best, -1]:.1f}" for name, each in finals.items()} | {
        "race-high": str(HIGH),
        "race-rates": str(len(SETTINGS.learning_rates)),
        **{f"race-high {rule}": str(int(each.sum())) for rule, each in high.items()},
        "claim-before": f"{100 * claim.MOST_BEFORE:.0f}",
        "race-verdict": _typeset(claim.verdict(comparisons, images.name)),
        "race-train": f"{sizes['train']:,}",
        "race-test": f"{sizes['test']:,}",
        "race-hidden": str(SETTINGS.hidden),
        "race-batch": str(SETTINGS.batch_size),
        "race-steps": str(SETTINGS.steps),
        "race-seeds": str(SETTINGS.seeds),
    }


def _plots() -> tuple[Plot, ...]:
    titles = {rule: race.RULES[rule][0] for rule in RULES}

    def look(rule: str, *, marked: bool) -> dict[str, Any]:
        colour, symbol, dash = LOOKS[rule]
        width = styles.RULES[rule].width
        return line(colour, width=width, dash=dash, marker={"size": 8, "symbol": symbol} if marked else None)

    accuracy = Plot(
        "race-accuracy",
        "Accuracy on new images",
        "The test accuracy of four rules after each iteration, at the learning rate of the slider or each at its own "
        "best.",
        tuple(
            Trace(rule, titles[rule], "iterations", f"{rule}-accuracy", style=look(rule, marked=False))
            for rule in RULES
        ),
        {"xaxis": {"title": "iterations"}, "yaxis": {"title": "test accuracy (%)", "range": [0, 100]}},
        shape="wide",
    )
    rates = Plot(
        "race-rates",
        "Accuracy after the last iteration",
        "The test accuracy of the four rules after the last iteration, for each learning rate. Circles mark the "
        "learning rates of the first figure.",
        (
            *(Trace(rule, titles[rule], "rates", f"{rule}-final", style=look(rule, marked=True)) for rule in RULES),
            Trace(
                "chosen",
                "shown in the first figure",
                "chosen-x",
                "chosen-y",
                style={
                    "mode": "markers",
                    "hoverinfo": "skip",
                    "cliponaxis": False,
                    "marker": {"symbol": "circle-open", "size": 17, "color": "--ink", "line": {"width": 2}},
                },
            ),
        ),
        {
            "xaxis": {"title": "learning rate α", "type": "log"} | ticks((0.001, 0.01, 0.1, 1)),
            "yaxis": {"title": "test accuracy (%)", "range": [0, 100]},
        },
        shape="wide",
    )
    return accuracy, rates


RACE = Section(
    "race",
    (
        Control("learning_rate", "Learning rate α of all rules", SETTINGS.learning_rates, 0.03, turns_off="best"),
        Control("best", "Each rule at its own best learning rate", (False, True), False),
    ),
    _plots(),
    fields,
    single,
    "sentence",
)
