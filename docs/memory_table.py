"""The tables of the page on memory, measured on states of the rules."""

from IPython.display import Markdown

from jaxopt_adam.lab.memory import CUTS, MOMENTS, RULES, WEIGHTS, measure, storages


def states() -> Markdown:
    """The state of each rule by the storage of its moments, in bytes a parameter."""
    rows = []
    for rule in RULES:
        sizes = [_number(state(rule, moments)) for moments in storages(rule)]
        rows.append([_link(rule), *sizes, *[""] * (len(MOMENTS) - len(sizes))])
    return _table(["rule", *(f'"{each}"' for each in MOMENTS)], rows)


def weights() -> Markdown:
    """Weights, gradients, and the state that keeps what rounding drops, in bytes a parameter."""
    rows = []
    for name in WEIGHTS:
        parts = measure("sgd", weights=name)
        own = [parts.pop("weights"), parts.pop("gradients")]
        rows.append([name, *map(_number, [*own, sum(parts.values()), sum(own) + sum(parts.values())])])
    return _table(["storage", "weights", "gradients", "state of the wrapper", "in all"], rows)


def everything() -> Markdown:
    """Weights, gradients and state for every rule, storage and kind of weights, in bytes a parameter."""
    rows = [
        [_link(rule), moments, *(_number(sum(measure(rule, moments, each).values())) for each in WEIGHTS)]
        for rule in RULES
        for moments in storages(rule)
    ]
    return _table(["rule", "moments", *WEIGHTS], rows)


def on_devices(rule: str, moments: str = "float32", weights: str = "float32") -> Markdown:
    """GB on each device for weights, gradients and state, by the number of parameters and of devices."""
    rows = []
    for billions in (1, 8, 70, 405):
        for devices in (64, 1024):
            on_each = [
                billions * sum(measure(rule, moments, weights, devices=devices, cut=cut).values()) for cut in CUTS
            ]
            sizes = [f"{size:,.0f}" if size >= 100 else f"{size:.3g}" for size in on_each]
            bold = [f"**{text}**" if size <= 80 else text for text, size in zip(sizes, on_each, strict=True)]
            rows.append([f"{billions} billion", f"{devices:,}", *bold])
    return _table(["parameters", "devices", "replicated", "ZeRO-1 (`data`)", "FSDP (`fsdp`)"], rows)


def state(rule: str, moments: str) -> float:
    """The bytes a parameter of the state of a rule."""
    return sum(size for name, size in measure(rule, moments).items() if name not in ("weights", "gradients"))


def _table(columns: list[str], rows: list[list[str]]) -> Markdown:
    rule = ["---", *["--:"] * (len(columns) - 1)]
    return Markdown("\n".join(f"| {' | '.join(row)} |" for row in [columns, rule, *rows]))


def _link(rule: str) -> str:
    return f"{{func}}`~jaxopt_adam.{rule}`"


def _number(size: float) -> str:
    return "–" if size == 0 else "< 0.01" if size < 0.01 else f"{size:.2f}"
