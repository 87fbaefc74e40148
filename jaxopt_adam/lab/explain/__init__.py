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
- The paths over a surface are walks. The page draws them over the plot as ``<svg class="layer">``, and Plotly draws
  what lies under them; ``div.data`` has both. ``<div class="player" data-of="…" data-steps="…">`` has a button
  ``.play``, a range for the step, without ``data-axis``, and two buttons ``.by``. The step does not change
  ``div.data``.
- ``<div class="start" role="slider">`` is the start of a walk. It is dragged, or moved by the arrow keys; Home puts it
  back. Its ``data-start`` is the start, as a JSON list, or empty at the surface's own. All plots of the section follow,
  and the controls of :attr:`Section.usual <jaxopt_adam.lab.explain.section.Section>` take their usual values. Moving
  one of these controls puts the start back.
- The picture at the top, ``<figure id="hero">``, has a player and a start, and is no plot. It plays once by itself
  unless the reader's system asks for reduced motion.
- ``window.explain.drawings[id]`` says how often a plot was drawn (``count``), and when the last drawing was asked for
  and done (``asked`` and ``done``, milliseconds of ``performance.now()``). A plot is drawn at most once in a frame, and
  only near the screen.
- ``window.explain.ready`` is a promise that resolves when the controls work; ``window.explain.drawn(id)`` returns one
  that resolves when plot `id` shows what the controls say.
- Where there is no WebGL, the plot ``descent-surface`` shows the keys ``wires``, ``path-projected`` and
  ``stop-projected`` in place of ``surface``, ``net``, ``path`` and ``stop``; :func:`expected` has all of them.
- A path is drawn until its first point outside of :data:`~jaxopt_adam.lab.explain.surfaces.BOX`. The step that leads
  there is drawn up to the border. The plots of heights, moments and steps show that step too, and say that it leaves.
  The surface in three dimensions does not show it. No plot shows what comes after it.
- :func:`expected` computes what the plots should show, without the grids. The page's numbers are rounded, by less than
  4·10⁻⁶ of the range of their row, or to float32. From a moved start they are rounded by less than 10⁻³ of that range;
  heights by less than 10⁻³ of the range of their logarithms, and to no less than 10⁻⁹.
"""

from jaxopt_adam.lab.explain.page import SECTIONS as SECTIONS
from jaxopt_adam.lab.explain.page import build as build
from jaxopt_adam.lab.explain.page import expected as expected
