"""The points to which a reader can move the start of a walk, and the fields of the walks from there."""

from collections.abc import Mapping

import numpy as np

from jaxopt_adam.lab.explain.section import Field

STARTS = tuple((float(x), y) for y in (-2.0, -1.2, -0.4, 0.4, 1.2, 2.0) for x in range(-4, 5))
"""The starts. None of them is a minimum of a surface, nor on the floor of the valley."""

BITS = 9
"""The precision of the walks from these starts: there are many, and a thousandth of a picture is about a pixel."""

LOWEST = 1e-9
"""The least height from a moved start. It is below all axes, and it has a logarithm."""


def moved(axes: tuple[str, ...], values: Mapping[str, np.ndarray]) -> dict[str, Field]:
    """The fields that take the place of fields of the same names while the start is moved.

    Args:
        axes: the axes of all fields; the moments have one more, the coordinate.
        values: the values by name. Fields named ``…value`` are heights, and are kept as logarithms.
    """
    fields = {}
    for name, each in values.items():
        own = (*axes, "coordinate")[: each.ndim - 1]
        if each.dtype.kind in "iu":
            fields[f"moved {name}"] = Field(axes, each)
        elif name.endswith("value"):
            fields[f"moved {name}"] = Field(own, np.log10(np.maximum(each, LOWEST)), bits=BITS, log=True)
        else:
            fields[f"moved {name}"] = Field(own, each, bits=BITS)
    return fields


def start_fields() -> dict[str, Field]:
    """The places of the starts themselves."""
    points = np.array(STARTS)
    return {f"moved start-{axis}": Field(("start",), points[:, i : i + 1]) for i, axis in enumerate("xy")}
