"""A moving picture of rules that walk down a function of two variables, as a GIF."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from jaxopt_adam.lab import styles
from jaxopt_adam.lab.landscape import Landscape, Walk, draw_ground, head_look, legend_line, path_look

MOST_FRAMES = 60
FRAME, FIRST, LAST = 80, 600, 2200
"""The time of a frame, of the first and of the last one, in milliseconds: 8 seconds in all at most."""

COLOURS = 64
"""The colours of the picture, as few as show no bands."""


def save(landscape: Landscape, walks: Sequence[Walk], path: Path) -> None:
    """Write the walks as a GIF that repeats for ever, with a pause at its end.

    The file has a background of its own, so it looks the same on light and dark pages. It is 750 pixels wide, and its
    text is legible at half of that.

    Args:
        landscape: the function.
        walks: paths of equal lengths. Of long ones not every step is a frame.
        path: the file to write.
    """
    pictures = list(_frames(landscape, walks))
    # The last frame has all colours. With one palette for all frames, only what moves is stored again.
    palette = pictures[-1].quantize(COLOURS, dither=Image.Dither.NONE)
    first, *rest = (each.quantize(palette=palette, dither=Image.Dither.NONE) for each in pictures)
    durations = [FIRST, *[FRAME] * (len(rest) - 1), LAST]
    first.save(path, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)


def _frames(landscape: Landscape, walks: Sequence[Walk]) -> Iterator[Image.Image]:
    """The frames, from the start to the last step."""
    figure = Figure(figsize=(5.0, 3.5), dpi=150, layout="constrained", facecolor=styles.COLOURS["background"][0])
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw_ground(axes, landscape, filled=True)
    axes.set(xticks=[], yticks=[])
    axes.plot(*walks[0].path[:1].T, "o", color="black", markersize=9, fillstyle="none")
    steps = len(walks[0].path) - 1
    walks = sorted(walks, key=lambda each: each.name != "adam")
    lines = [axes.plot([], [], **path_look(each))[0] for each in walks]
    heads = [axes.plot([], [], **head_look(each.name, size=10))[0] for each in walks]
    handles = [legend_line(each.name, each.rule) for each in walks]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=11.5, frameon=False, handlelength=3)
    title = axes.set_title(f"step {steps} of {steps}", fontsize=11.5)
    canvas.draw()
    figure.set_layout_engine("none")  # the frames have the place of the first drawing
    for step in dict.fromkeys([*range(0, steps, math.ceil(steps / MOST_FRAMES)), steps]):
        for each, line, head in zip(walks, lines, heads, strict=True):
            line.set_data(*each.path[: step + 1].T)
            head.set_data(*each.path[step : step + 1].T)
        title.set_text(f"step {step} of {steps}")
        canvas.draw()
        yield Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
