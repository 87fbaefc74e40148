"""Where a walk leaves the picture: the step up to the border, and the words that say so."""

import numpy as np

from jaxopt_adam.lab.explain.surfaces import BOX


def to_border(x: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Paths whose first point outside of the box is moved back along its step to the border.

    Args:
        x: the points, shape (…, points, 2).
        points: the number of points before the first one outside, shape (…); at least one.

    Returns:
        The paths, of the same shape. The points after the border are as they were.
    """
    left, right, bottom, top = BOX
    where = np.minimum(points, x.shape[-2] - 1)[..., None, None]
    before = np.take_along_axis(x, where - 1, axis=-2)
    step = np.take_along_axis(x, where, axis=-2) - before
    border = np.where(step > 0, [right, top], [left, bottom])
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.where(step == 0, np.inf, (border - before) / step).min(axis=-1, keepdims=True)
    crossing = before + np.minimum(part, 1) * step
    found = x.copy()
    np.put_along_axis(found, where, crossing, axis=-2)
    return found


def drawn(points: np.ndarray, steps: int) -> np.ndarray:
    """The number of points that are drawn: those inside, and the one where the walk leaves."""
    return np.minimum(points, steps) + 1


def words(points: np.ndarray, steps: int) -> list:
    """A sentence over the curves of each walk that leaves; empty for the others."""
    texts = np.array([f"Step {each} leaves the picture." if each <= steps else "" for each in range(steps + 2)], object)
    return texts[points].tolist()
