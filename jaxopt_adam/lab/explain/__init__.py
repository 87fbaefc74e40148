"""The interactive article: one page, ``explain.html``, with sliders for the settings of each rule.

This library computes every number and curve of the page when the page is made. A slider picks a row of a grid that was
computed in one vmapped program, and the page's script draws it. The script does not compute any rule.

What a test may rely on:

- Each section is ``<section id="…">`` with the ids of :data:`SECTIONS`: ``gradient-descent``, ``batches``,
  ``averages``, ``momentum``, ``rmsprop``, ``adam``, ``race``.
- Each control is an ``<input>`` (range, checkbox or radio) with ``data-axis``, the name of the setting, and
  ``data-plots``, the ids of the plots that it moves, separated by spaces. A range runs over the places 0, 1, … in
  ``data-values``, a JSON list of numbers; a checkbox stands for False and True; the value of a radio button is its
  setting.
- Each plot is a ``<div class="plot" id="…">`` drawn by Plotly: ``div.data[k].x``, ``.y`` and ``.z`` are the values that
  are drawn, and ``div.data[k].meta.key`` is the key of the trace.
- ``window.explain.ready`` is a promise that resolves when the controls work; ``window.explain.drawn(id)`` returns one
  that resolves when plot `id` shows what the controls say.
- Where there is no WebGL, the plot ``descent-surface`` shows the keys ``wires``, ``path-projected`` and
  ``stop-projected`` in place of ``surface``, ``path`` and ``stop``; :func:`expected` has all of them.
- A path is drawn until its first point outside of :data:`~jaxopt_adam.lab.explain.surfaces.BOX`. Every plot leaves out
  that point, all later points, and the step that leads there.
- :func:`expected` computes what the plots should show, without the grids. The page's numbers are rounded, by less than
  4·10⁻⁶ of the range of their row, or to float32.
"""

from jaxopt_adam.lab.explain.page import SECTIONS as SECTIONS
from jaxopt_adam.lab.explain.page import build as build
from jaxopt_adam.lab.explain.page import expected as expected
