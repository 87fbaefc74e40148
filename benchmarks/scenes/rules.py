"""Every rule beside the same rule of optax."""

from collections.abc import Callable, Iterator
from typing import Any

import optax
import optax.contrib

import jaxopt_adam
from benchmarks import work
from benchmarks.contest import Case, Scene

THEIRS: dict[str, Callable[[], Any]] = {
    "adabelief": lambda: optax.adabelief(1e-3),
    "adadelta": lambda: optax.adadelta(1.0),
    "adafactor": lambda: optax.adafactor(1e-3),
    "adagrad": lambda: optax.adagrad(1e-2),
    "adam": lambda: optax.adam(1e-3),
    "adamax": lambda: optax.adamax(1e-3),
    "adamaxw": lambda: optax.adamaxw(1e-3),
    "adamw": lambda: optax.adamw(1e-3),
    "adan": lambda: optax.adan(1e-3),
    "ademamix": lambda: optax.contrib.ademamix(1e-3),
    "adopt": lambda: optax.contrib.adopt(1e-3),
    "amsgrad": lambda: optax.amsgrad(1e-3),
    "lamb": lambda: optax.lamb(1e-3),
    "lion": lambda: optax.lion(1e-4),
    "muon": lambda: optax.contrib.muon(1e-3),
    "nadam": lambda: optax.nadam(1e-3),
    "nadamw": lambda: optax.nadamw(1e-3),
    "novograd": lambda: optax.novograd(1e-3),
    "prodigy": lambda: optax.contrib.prodigy(1.0),
    "radam": lambda: optax.radam(1e-3),
    "rmsprop": lambda: optax.rmsprop(1e-3),
    "schedule_free_adamw": lambda: optax.contrib.schedule_free_adamw(1e-3),
    "sgd": lambda: optax.sgd(1e-2, momentum=0.9),
    "yogi": lambda: optax.yogi(1e-3),
}
"""The rules that optax has too; the others are compared with `optax.adam`."""
OPTIONS: dict[str, dict[str, Any]] = {"sgd": {"momentum": 0.9}}
MOST = {"adam_atan2": 1.5}


def rules() -> list[str]:
    """The names of all rules."""
    return sorted(
        name
        for name, each in vars(jaxopt_adam).items()
        if getattr(each, "__module__", "").startswith("jaxopt_adam.rules.") and hasattr(each, "__wrapped__")
    )


def cases(quick: bool) -> Iterator[Case]:
    """A step of each rule on one matrix."""
    for size, shapes in {"1 M": {"w": (1024, 1024)}, "16.8 M": {"w": (4096, 4096)}}.items():
        if quick and size != "1 M":
            continue
        for name in rules():
            if name in ("soap", "muon") and size != "1 M":
                continue  # matrix products, seconds a step
            theirs, label = (THEIRS[name], f"optax's {name}") if name in THEIRS else (THEIRS["adam"], "optax.adam")
            made = getattr(jaxopt_adam, name)(learning_rate=1e-3, **OPTIONS.get(name, {}))
            contestants = {name: work.step(made, shapes), label: work.step(theirs(), shapes)}
            most = {name: 1.05} if name in THEIRS else {key: MOST[key] for key in MOST if key == name}
            yield Case(f"{name}, {size}", contestants, label, seconds=0.1 if quick else 0.3, rounds=3, most=most)


SCENE = Scene(
    "rules",
    "Every rule",
    "A step of each rule on one matrix, beside the same rule of optax, or beside `optax.adam` where optax has none.",
    cases,
    processes=3,
)
