"""Measure this library beside others: python -m benchmarks [--quick] [--only NAME] [--json FILE] [--tables].

Every scene runs in several processes, one at a time. In each the contestants take turns, after a run that warms up. The
time of a contestant is divided by that of the reference in the same round, and the median of these ratios is taken.
What is shown is the median over the processes, and the range. Contestants whose library is not installed are left out
with a word.

The whole takes about twenty minutes on two cores, and --quick a small part of that. --tables writes what
docs/speed.md and docs/speed_rules.md show: docs/tables/speed.json, the tables slower, speed and speed_rules beside it,
and docs/images/growth.png. The accuracy of what is stored in fewer bits is measured by the other files of this folder,
each a script: they take longer, and their results do not depend on the machine.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import report

ROOT = Path(__file__).parents[1]


def worker(name: str, seed: int, quick: bool, cache: str) -> None:
    """Run a scene in this process and print what was measured."""
    import jax

    from benchmarks.contest import measured
    from benchmarks.scenes import SCENES

    if SCENES[name].devices > 1:
        jax.config.update("jax_num_cpu_devices", SCENES[name].devices)
    if SCENES[name].cached:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    found: dict[str, Any] = {}
    for case in SCENES[name].cases(quick):
        results = measured(case, seed)
        found[case.name] = {
            "reference": case.reference,
            "most": dict(case.most),
            "contestants": results,
        }
    print(json.dumps(found))


def run(name: str, processes: int, quick: bool) -> dict[str, Any]:
    """A scene's measurements, each number a list over the processes."""
    together: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        results = [_of_process(name, seed, quick, cache) for seed in range(processes)]
    for each in results:
        for case, result in each.items():
            known = together.setdefault(case, result | {"contestants": {}})
            for contestant, parts in result["contestants"].items():
                own = known["contestants"].setdefault(
                    contestant, {"seconds": {}, "beside": {}, "counts": parts["counts"]}
                )
                for kind in ("seconds", "beside"):
                    for key, number in parts[kind].items():
                        own[kind].setdefault(key, []).append(number)
    return together


def _of_process(name: str, seed: int, quick: bool, cache: str) -> dict[str, Any]:
    """The measurements of a process of its own."""
    command = [sys.executable, "-m", "benchmarks", "--worker", name, "--seed", str(seed), "--cache", cache]
    done = subprocess.run([*command, *(["--quick"] if quick else [])], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"benchmarks: scene {name} failed in its process {seed}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller work in two processes")
    parser.add_argument("--only", action="append", metavar="NAME", help="a scene; may be given several times")
    parser.add_argument("--processes", type=int, help="how many processes for each scene")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements to a file")
    parser.add_argument("--tables", action="store_true", help="write the tables and the plots of the documentation")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker, given.seed, given.quick, given.cache)
        return
    from benchmarks.scenes import SCENES

    for name in given.only or ():
        if name not in SCENES:
            parser.error(f"--only must be one of {', '.join(SCENES)}, got {name}")
    if given.processes is not None and given.processes < 1:
        parser.error(f"--processes must be at least 1, got {given.processes}")
    if given.tables and given.quick:
        parser.error("--tables needs scenes that are not quick")
    scenes: dict[str, Any] = {}
    for name in given.only or SCENES:
        scene = SCENES[name]
        processes = given.processes or (2 if given.quick else scene.processes)
        start = time.perf_counter()
        scenes[name] = report.about() | {
            "title": scene.title,
            "text": scene.text,
            "processes": processes,
            "cases": run(name, processes, given.quick),
            "seconds": round(time.perf_counter() - start),
        }
        print(f"{report.section(scenes[name])}\n({name}: {scenes[name]['seconds']} s)\n", flush=True)
        if given.tables:  # after each, so that a run that is stopped loses only the scene that it was in
            report.write({name: scenes[name]}, ROOT / "docs")
    print(report.losses(scenes))
    if given.json:
        given.json.write_text(json.dumps(scenes, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
