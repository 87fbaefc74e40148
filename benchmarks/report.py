"""Measurements as Markdown and as plots."""

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scenes import SCENES

OTHERS = ("optax", "torch", "bitsandbytes", "optimistix", "a ")
"""The first letters of the names of contestants that are not of this library."""
LIBRARIES = ("jaxopt-adam", "jax", "jaxlib", "optax", "numpy", "torch", "torchao", "bitsandbytes", "optimistix")


def about() -> dict[str, Any]:
    """The day, the machine and the versions."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {"Python": platform.python_version()} | dict(_versions()),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _versions() -> Iterator[tuple[str, str]]:
    for name in LIBRARIES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def is_ours(contestant: str) -> bool:
    """True for a contestant of this library."""
    return not contestant.startswith(OTHERS)


def ratios(case: dict[str, Any], contestant: str, beside: str | None = None) -> list[float]:
    """The time relative to that of another contestant, or of the reference, for each process."""
    return case["contestants"][contestant]["beside"][beside or case["reference"]]


def section(scene: dict[str, Any]) -> str:
    """A scene's title, text and table."""
    return f"## {scene['title']}\n\n{scene['text']}\n\n{tables(scene)}"


def tables(scene: dict[str, Any]) -> str:
    """The table of a scene."""
    cases = scene["cases"].items()
    parted = any(len(each["seconds"]) > 1 for _, case in cases for each in case["contestants"].values())
    counted = any("temporaries" in each["counts"] for _, case in cases for each in case["contestants"].values())
    head = ["work", "contestant", "time", "relative", "range"]
    head += ["trace + lower + compile"] * parted + ["temporaries"] * counted
    rows = []
    for name, case in cases:
        for index, (contestant, found) in enumerate(case["contestants"].items()):
            relative = ratios(case, contestant)
            row = [
                "" if index else name,
                contestant,
                seconds(statistics.median(found["seconds"]["step"])),
                f"{statistics.median(relative):.2f}",
                "" if contestant == case["reference"] else f"{min(relative):.2f}–{max(relative):.2f}",
            ]
            if parted:
                parts = [found["seconds"].get(part) for part in ("trace", "lower", "compile")]
                row.append(" + ".join(f"{statistics.median(each):.2f}" for each in parts if each))
            if counted:
                temporaries = found["counts"].get("temporaries")
                row.append("" if temporaries is None else f"{temporaries / 2**20:.1f} MiB")
            rows.append(row)
    return table(head, rows)


def losses(scenes: dict[str, Any]) -> str:
    """The table of where ours takes longer than another library, or longer than it should, the worst first."""
    rows = []
    for scene in scenes.values():
        for name, case in scene["cases"].items():
            for ours, beside in _pairs(case):
                relative = ratios(case, ours, beside)
                median, most = statistics.median(relative), case["most"].get(ours)
                most = most if beside == case["reference"] else None
                if round(median, 2) > (most or 1.0):
                    spread = f"{min(relative):.2f}–{max(relative):.2f}"
                    row = [scene["title"], name, ours, beside, f"{median:.2f}", spread]
                    rows.append((median, [*row, f"{most:.2f}" if most else ""]))
    head = ["scene", "work", "ours", "beside", "relative", "range", "meant to be at most"]
    rows = [row for _, row in sorted(rows, key=lambda pair: -pair[0])]
    return "## Where it is slower\n\n" + (table(head, rows) if rows else "Nowhere.\n")


def _pairs(case: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each contestant of ours with each of other libraries, and with the reference where there is a limit for it."""
    for ours in filter(is_ours, case["contestants"]):
        for beside in case["contestants"]:
            if beside == case["reference"] and is_ours(beside):
                if ours in case["most"]:
                    yield ours, beside
            elif not is_ours(beside) and not beside.startswith("a "):
                yield ours, beside


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def seconds(value: float) -> str:
    """A time in the unit that suits it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def curves(scene: dict[str, Any]) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
    """Of cases called `what: number` the numbers and the times, by what and by contestant."""
    found: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for name, case in scene["cases"].items():
        what, number = name.split(": ")
        for contestant, result in case["contestants"].items():
            numbers, times = found.setdefault(what, {}).setdefault(contestant, ([], []))
            numbers.append(int(number))
            times.append(statistics.median(result["seconds"]["step"]))
    return found


FITTED_FROM = {"parameters": 10**6, "leaves": 16, "devices": 1}


def exponents(scene: dict[str, Any]) -> str:
    """The fitted exponents of time in what grows."""
    rows = []
    for what, contestants in curves(scene).items():
        for contestant, (numbers, times) in contestants.items():
            chosen = [(n, t) for n, t in zip(numbers, times, strict=True) if n >= FITTED_FROM[what]]
            if len(chosen) > 1:
                x, y = np.log(np.array(chosen)).T
                rows.append([what, contestant, f"{np.polyfit(x, y, 1)[0]:.2f}"])
    return table(["in the number of", "contestant", "exponent"], rows)


def plot(scene: dict[str, Any], target: Path) -> None:
    """The curves of time on logarithmic axes."""
    from matplotlib.figure import Figure

    found = curves(scene)
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    for axes, (what, contestants) in zip(np.atleast_1d(figure.subplots(1, len(found))), found.items(), strict=True):
        for (contestant, (numbers, times)), (colour, marker) in zip(
            contestants.items(), (("#0072b2", "o"), ("#d55e00", "s")), strict=False
        ):
            axes.loglog(numbers, np.multiply(times, 1e3), marker=marker, color=colour, label=contestant)
        if what == "devices":  # few, and as quick
            numbers = next(iter(contestants.values()))[0]
            axes.set_xticks(numbers, [f"{number}" for number in numbers])
            axes.minorticks_off()
            axes.set_yscale("linear")
            axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
        axes.set_xlabel(what)
        axes.set_ylabel("time of a step in ms")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(target, dpi=150)


def write(scenes: dict[str, Any], docs: Path) -> None:
    """Write the measurements, the tables and the plots below the folder of the documentation. Other scenes stay."""
    kept = docs / "tables" / "speed.json"
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    known = {name: scene for name in SCENES if (scene := scenes.get(name) or known.get(name))}
    kept.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    rules = {name: scene for name, scene in known.items() if name == "rules"}  # a table as long as all others together
    others = {name: scene for name, scene in known.items() if name != "rules"}
    for name, text in {"slower": losses(known), "speed": page(others), "speed_rules": page(rules)}.items():
        (docs / "tables" / f"{name}.md").write_text(text, encoding="utf-8")
    if "growth" in scenes:
        plot(scenes["growth"], docs / "images" / "growth.png")


def page(scenes: dict[str, Any]) -> str:
    """Scenes for readers."""
    parts = []
    for name, scene in scenes.items():
        versions = ", ".join(f"{library} {version}" for library, version in scene["versions"].items())
        parts.append(section(scene))
        if name == "growth":
            parts.append(exponents(scene))
        parts.append(f"On {scene['date']}, {scene['machine']}; {versions}; {scene['processes']} processes.\n")
    return "\n".join(parts)
