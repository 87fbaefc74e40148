"use strict";

// What the page shows was computed when it was made. Here it is unpacked, picked by the controls, and drawn.
(() => {
  const element = (id) => document.getElementById(id);

  // Themes.

  const root = document.documentElement;
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const themeButton = element("theme");
  let chosenTheme = null;
  try {
    chosenTheme = localStorage.getItem("explain-theme");
  } catch {
    // Some browsers keep nothing for files.
  }

  function setTheme() {
    const dark = chosenTheme ? chosenTheme === "dark" : prefersDark.matches;
    root.dataset.theme = dark ? "dark" : "light";
    themeButton.textContent = dark ? "Light" : "Dark";
  }

  setTheme();
  themeButton.addEventListener("click", () => {
    chosenTheme = root.dataset.theme === "dark" ? "light" : "dark";
    try {
      localStorage.setItem("explain-theme", chosenTheme);
    } catch {
      // As above.
    }
    setTheme();
    redrawAll();
  });
  prefersDark.addEventListener("change", () => {
    setTheme();
    redrawAll();
  });

  const narrow = matchMedia("(max-width: 40rem)");
  narrow.addEventListener("change", () => redrawAll());

  // Unpacking.

  async function unpacked(id) {
    const source = element(id);
    const letters = atob(source.textContent);
    source.remove(); // its letters are not needed twice
    const bytes = new Uint8Array(letters.length);
    for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }

  const product = (numbers) => numbers.reduce((total, each) => total * each, 1);

  class Section {
    constructor(buffer, home) {
      const view = new DataView(buffer);
      const head = view.getUint32(0, true);
      this.description = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, head)));
      this.bytes = new Uint8Array(buffer, 4 + head);
      this.home = home;
      this.fields = new Map(this.description.fields.map((field) => [field.name, field]));
      this.start = -1; // the place of a moved start
      this.inputs = new Map(Object.keys(this.description.axes).map((axis) => [axis, [...home.querySelectorAll(`input[data-axis="${axis}"]`)]]));
      this.recent = new Map();
    }

    field(name) {
      return (this.start >= 0 && this.fields.get(`moved ${name}`)) || this.fields.get(name);
    }

    place(axis) {
      if (axis === "start") return this.start;
      const inputs = this.inputs.get(axis);
      if (inputs[0].type === "range") return Number(inputs[0].value);
      if (inputs[0].type === "checkbox") return Number(inputs[0].checked);
      return inputs.findIndex((input) => input.checked);
    }

    row(field) {
      return field.axes.reduce((row, axis) => row * this.description.axes[axis] + this.place(axis), 0);
    }

    words(at, total, from, count) {
      const numbers = new Uint32Array(count);
      for (let byte = 0; byte < 4; byte++) {
        const start = at + byte * total + from;
        for (let i = 0; i < count; i++) numbers[i] |= this.bytes[start + i] << (8 * byte);
      }
      return numbers;
    }

    // The row of a field that the controls say. The same row is the same array.
    values(name) {
      const field = this.field(name);
      const row = this.row(field);
      const recent = this.recent.get(name);
      if (recent?.field === field && recent.row === row) return recent.values;
      const values = this.decoded(field, row);
      this.recent.set(name, { field, row, values });
      return values;
    }

    decoded(field, row) {
      const rest = field.shape.slice(field.axes.length);
      const count = product(rest);
      const numbers = this.words(field.at, product(field.shape), row * count, count);
      let found;
      if (field.kind === "waves") {
        const frame = new DataView(this.bytes.buffer, this.bytes.byteOffset + field.at + field.frames + 16 * row, 16);
        const [first, unit] = [frame.getFloat64(0, true), frame.getFloat64(8, true)];
        let slope = 0;
        let height = 0;
        found = Array.from(numbers, (folded) => {
          slope += folded & 1 ? -((folded >>> 1) + 1) : folded >>> 1;
          height += slope;
          return field.log ? 10 ** (first + height * unit) : first + height * unit;
        });
      } else {
        found = Array.from(new Float32Array(numbers.buffer));
      }
      if (rest.length < 2) return found;
      return Array.from({ length: rest[0] }, (_, i) => found.slice(i * rest[1], (i + 1) * rest[1]));
    }

    text(name) {
      const field = this.field(name);
      return field.axes.reduce((texts, axis) => texts[this.place(axis)], field.texts);
    }
  }

  // Drawing.

  const colours = new Map(); // of the theme; to ask for one costs a new style of the whole page

  function colour(name) {
    if (!colours.has(name)) colours.set(name, getComputedStyle(root).getPropertyValue(name).trim());
    return colours.get(name);
  }

  function coloured(style) {
    if (style === "--ground") return [[0, colour("--ground-low")], [1, colour("--ground-high")]];
    if (typeof style === "string" && style.startsWith("--")) return colour(style);
    if (Array.isArray(style)) return style.map(coloured);
    if (style && typeof style === "object") {
      return Object.fromEntries(Object.entries(style).map(([key, value]) => [key, coloured(value)]));
    }
    return style;
  }

  function filled(layout, section) {
    if (Array.isArray(layout) || !layout || typeof layout !== "object") return layout;
    if ("field" in layout) return section.text(layout.field);
    return Object.fromEntries(Object.entries(layout).map(([key, value]) => [key, filled(value, section)]));
  }

  function axisStyle(axis = {}) {
    const { title, ...others } = axis;
    return {
      color: colour("--muted"),
      tickfont: { size: 14 },
      gridcolor: colour("--grid"),
      zerolinecolor: colour("--grid-strong"),
      automargin: true,
      fixedrange: true,
      ticks: "outside", // so that the labels of two axes do not meet in the corner
      ticklen: 5,
      tickcolor: colour("--grid-strong"),
      title: { text: title, standoff: narrow.matches ? 3 : 8 },
      ...others,
    };
  }

  function layoutOf(plot, section, flat) {
    const { xaxis, yaxis, scene, ...others } = filled(plot.layout, section);
    const above = others.title?.text ? 34 : 12;
    const layout = {
      font: { family: "system-ui, sans-serif", size: 14, color: colour("--muted") },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: narrow.matches ? { l: 40, r: 18, t: above, b: 36 } : { l: 48, r: 20, t: above, b: 40 }, // a label that does not fit is left out
      dragmode: false,
      hovermode: "closest",
      showlegend: false, // the page has its own
      ...others,
    };
    if (scene && !flat) {
      const ratio = { aspectmode: "manual", aspectratio: { x: 1.6, y: 1, z: 0.55 } };
      layout.scene = Object.fromEntries(Object.entries(scene).map(([key, axis]) => [key, { ...axisStyle(axis), fixedrange: undefined, automargin: undefined, title: { text: axis.title } }]));
      Object.assign(layout.scene, ratio, { camera: { eye: camera(element(plot.id).clientWidth < 480 ? 1.6 : 1.2), center: { x: 0, y: 0, z: -0.4 } }, dragmode: "turntable" });
      layout.margin = { l: 0, r: 0, t: 0, b: 0 };
      layout.uirevision = turn;
    } else {
      layout.xaxis = axisStyle(xaxis);
      layout.yaxis = axisStyle(yaxis);
    }
    return layout;
  }

  function webgl() {
    const canvas = document.createElement("canvas");
    return Boolean(canvas.getContext("webgl2") || canvas.getContext("webgl"));
  }

  const inSpace = (trace) => trace.style.type === "mesh3d" || trace.style.type === "scatter3d";
  let hasWebgl;
  let printing = false;
  let turn = 0;

  // From so far away the labels fit into the picture, however the surface is turned.
  function camera(away) {
    const angle = (-60 + 15 * turn) * (Math.PI / 180);
    return { x: 1.7 * away * Math.cos(angle), y: 1.7 * away * Math.sin(angle), z: 1.5 * away };
  }

  // Plots by id: {div, section's id, the time since when it is dirty or Infinity, visible, the layer over it}.
  const plots = new Map();
  const sections = new Map(); // id: promise of a Section
  const opened = new Map(); // id: Section

  function sectionOf(id) {
    if (!sections.has(id)) {
      sections.set(id, unpacked(`data-${id}`).then((buffer) => {
        const section = new Section(buffer, element(id));
        opened.set(id, section);
        say(section);
        return section;
      }));
    }
    return sections.get(id);
  }

  function numbers(trace, section) {
    const length = trace.length ? section.values(trace.length)[0] : undefined;
    const found = {};
    for (const axis of ["x", "y", "z"]) {
      if (trace[axis]) found[axis] = section.values(trace[axis]).slice(0, length); // Plotly takes the same array for the old one
    }
    if (trace.corners.length) {
      [found.i, found.j, found.k] = trace.corners.map((name) => section.values(name));
      found.intensity = found.z;
    }
    return found;
  }

  function traceOf(trace, section) {
    const drawn = { type: "scatter", showlegend: Boolean(trace.name), name: trace.name, meta: { key: trace.key }, ...coloured(trace.style) };
    return Object.assign(drawn, numbers(trace, section));
  }

  const drawings = {}; // id: how often it was drawn, and when the last drawing was asked for and done

  function drawNow(id) {
    const plot = plots.get(id);
    const asked = plot.since;
    plot.since = Infinity;
    const begun = performance.now();
    drawNew(id, plot, opened.get(plot.section));
    const done = performance.now();
    plot.spent = done - begun;
    drawings[id] = { count: (drawings[id]?.count ?? 0) + 1, asked, done };
  }

  function drawNew(id, plot, section) {
    const description = section.description.plots.find((each) => each.id === id);
    const sentence = section.description.sentence;
    plot.div.setAttribute("aria-label", sentence ? `${description.label} ${section.text(sentence)}` : description.label);
    if (description.walked && drawWalks(plot, section, description)) return;
    let traces = description.traces;
    let flat = true;
    if (traces.some(inSpace)) {
      hasWebgl ??= webgl();
      flat = !hasWebgl || printing; // the other one is not drawn before the page is on paper
      traces = traces.filter((trace) => inSpace(trace) !== flat);
      element("flat").hidden = hasWebgl;
      element("turn").hidden = !hasWebgl;
    }
    plot.stale = false;
    plot.drawing = Plotly.react(
      plot.div,
      traces.map((trace) => traceOf(trace, section)),
      layoutOf(description, section, flat),
      { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false },
    );
    if (section.description.steps && flat) cover(plot, section, description);
  }

  // Walks. Plotly draws the ground and the axes, and walks.js the paths, which takes a millisecond.

  const overSteps = (trace) => trace.x === "t" || trace.x === "t0";
  const onLayer = (trace) => trace.style.type !== "contour";

  function frameOf(div) {
    const { xaxis, yaxis } = div._fullLayout;
    return {
      left: xaxis._offset,
      top: yaxis._offset,
      width: xaxis._length,
      height: yaxis._length,
      x: (value) => xaxis._offset + xaxis.l2p(value),
      y: (value) => yaxis._offset + yaxis.l2p(value),
    };
  }

  function cover(plot, section, description) {
    const { walked, traces } = description;
    if (!walked && !traces.some(overSteps)) return;
    if (!plot.layer) {
      plot.layer = new walks.Layer(plot.div.parentElement);
      plot.layer.stage.classList.toggle("walked", walked);
      plot.layer.step = players.get(plot.section).shown();
      const { starts } = section.description;
      if (walked && starts.length) new walks.Start(plot.layer, starts, (index) => moveStart(section, index));
      plot.div.on("plotly_afterplot", () => cover(plot, section, description)); // after a new size
    }
    if (!walked) return plot.layer.rule(frameOf(plot.div));
    plot.ground = groundOf(section, description);
    showWalks(plot, section, traces);
  }

  function showWalks(plot, section, traces) {
    const shown = traces.filter(onLayer).map((trace) => ({ ...trace, ...numbers(trace, section) }));
    plot.layer.show(shown, frameOf(plot.div));
  }

  const groundOf = (section, { traces }) =>
    traces.filter((trace) => !onLayer(trace)).flatMap(({ x, y, z }) => [x, y, z]).map((name) => section.values(name));

  // Draw the walks alone, where the ground under them is what was drawn last.
  function drawWalks(plot, section, description) {
    const { layer, ground, div } = plot;
    if (!layer || plot.restyled || !groundOf(section, description).every((values, i) => values === ground[i])) {
      plot.restyled = false;
      return false;
    }
    for (const trace of description.traces.filter(onLayer)) {
      Object.assign(div.data.find((each) => each.meta.key === trace.key), numbers(trace, section));
    }
    showWalks(plot, section, description.traces);
    plot.stale = true; // Plotly still has the old numbers under the pointer
    return true;
  }

  async function draw(id) {
    const plot = plots.get(id);
    await sectionOf(plot.section);
    await plotly;
    if (plot.since < Infinity) drawNow(id);
    return plot.drawing;
  }

  const BUDGET = 16; // milliseconds of a frame
  let scheduled = false;

  function drawSoon() {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      drawSome();
    });
  }

  // Draw what is near the screen: the walks first, then what waits longest, then what took the least time before. What
  // would not fit into the frame waits for the next.
  function drawSome() {
    const waiting = [...plots].filter(([, plot]) => plot.since < Infinity && plot.visible);
    const later = ({ ground }) => (ground ? 0 : 1);
    waiting.sort(([, one], [, other]) => later(one) - later(other) || one.since - other.since || one.spent - other.spent);
    const start = performance.now();
    for (const [place, [id, plot]] of waiting.entries()) {
      if (place && performance.now() - start + plot.spent > BUDGET) return drawSoon();
      if (opened.has(plot.section) && window.Plotly) drawNow(id);
      else draw(id);
    }
  }

  function dirty(plot, now = performance.now()) {
    plot.since = Math.min(plot.since, now);
  }

  function redrawAll() {
    colours.clear();
    for (const plot of plots.values()) {
      dirty(plot);
      plot.restyled = true;
    }
    drawSoon();
  }

  // What lies under the pointer is brought up to date.
  function freshen(plot) {
    if (!plot.stale) return;
    plot.restyled = true;
    dirty(plot);
    drawSoon();
  }

  // Controls.

  function say(section) {
    const text = section.text(section.description.sentence);
    const [, word, rest] = /^(?:([^ :]+:) )?(.*)$/.exec(text);
    const strong = document.createElement("strong");
    strong.textContent = word ?? "";
    section.home.querySelector(".say").replaceChildren(strong, word ? ` ${rest}` : rest);
    players.get(section.home.id)?.tell();
  }

  function showValue(input) {
    if (input.type !== "range") return;
    const text = JSON.parse(input.dataset.texts)[input.value];
    input.setAttribute("aria-valuetext", text);
    input.closest(".control").querySelector("output").textContent = text;
  }

  async function moved(input) {
    showValue(input);
    const now = performance.now();
    for (const id of input.dataset.plots.split(" ")) if (id) dirty(plots.get(id), now);
    drawSoon();
    const section = await sectionOf(input.closest("section").id);
    const { usual } = section.description;
    if (section.start >= 0 && input.dataset.axis in usual && section.place(input.dataset.axis) !== usual[input.dataset.axis]) {
      moveStart(section, -1);
    } else say(section);
  }

  function set(home, axis, place) {
    const inputs = home.querySelectorAll(`input[data-axis="${axis}"]`);
    if (inputs[0].type === "range") inputs[0].value = place;
    else if (inputs[0].type === "checkbox") inputs[0].checked = Boolean(place);
    else inputs[place].checked = true;
    showValue(inputs[0]);
    return inputs[0];
  }

  // Other starts were computed for the usual values of some controls. The start -1 is the surface's own.
  function moveStart(section, index) {
    const changed = index < 0 ? [] : Object.entries(section.description.usual).filter(([axis, place]) => section.place(axis) !== place);
    if (index < 0) inform(section, section.start < 0 ? "" : "The start is back at its original place.");
    else if (changed.length) inform(section, "You moved the start, so the marked settings were reset to their usual values.");
    else if (section.start < 0) inform(section, "");
    section.start = index;
    for (const [axis, place] of changed) mark(set(section.home, axis, place));
    const now = performance.now();
    for (const plot of plots.values()) if (plot.section === section.home.id) dirty(plot, now);
    drawSoon();
    say(section);
  }

  // Say what the page has changed by itself, and mark the controls that it has moved.
  function inform(section, text) {
    const line = section.home.querySelector(".informed"); // there is none where no start can be moved
    if (line) line.textContent = text;
    for (const each of section.home.querySelectorAll(".control.changed")) each.classList.remove("changed");
  }

  const mark = (input) => input.closest(".control").classList.add("changed");

  for (const input of document.querySelectorAll("input[data-axis]")) {
    showValue(input); // a browser may have kept another value than the page's
    input.addEventListener("input", () => {
      const home = input.closest("section");
      const off = input.dataset.off && home.querySelector(`input[data-axis="${input.dataset.off}"]`);
      if (off?.checked) moved(set(home, input.dataset.off, 0));
      if (opened.get(home.id)?.start < 0) inform(opened.get(home.id), "");
      moved(input);
    });
  }

  for (const button of document.querySelectorAll("button.try")) {
    button.addEventListener("click", () => {
      const home = button.closest("section");
      if (opened.get(home.id)?.start >= 0) moveStart(opened.get(home.id), -1);
      for (const [axis, place] of Object.entries(JSON.parse(button.dataset.set))) moved(set(home, axis, place));
      showEffect(button);
    });
  }

  // A button in the text may be far from the figure that it changes. The page then scrolls to the figure, and another
  // button leads back to the text.

  const back = element("back");
  let cameFrom;

  function onScreen(target) {
    const { top, bottom } = target.getBoundingClientRect();
    return top >= document.querySelector("nav").clientHeight && bottom <= innerHeight;
  }

  function showEffect(button) {
    const lab = button.closest("section").querySelector(".lab");
    if ([".stage", ".say"].every((part) => onScreen(lab.querySelector(part)))) return;
    cameFrom = button;
    back.hidden = false;
    back.focus({ preventScroll: true });
    lab.scrollIntoView({ block: "start" });
  }

  back.addEventListener("click", () => {
    back.hidden = true;
    cameFrom.focus({ preventScroll: true });
    cameFrom.scrollIntoView({ block: "center" });
  });

  for (const button of document.querySelectorAll("#turn button")) {
    button.addEventListener("click", () => {
      turn += Number(button.dataset.turn);
      dirty(plots.get("descent-surface"));
      drawSoon();
    });
  }

  // Players.

  const players = new Map(); // section's id: Player

  function at(id, step) {
    for (const plot of plots.values()) if (plot.section === id && plot.visible) plot.layer?.at(step);
  }

  function told(section, step) {
    if (!section.fields.has("value")) return "";
    const { steps } = section.description;
    const left = section.values("points")[0]; // the first step outside, if the walk has that many
    if (step > left && left <= steps) return `the path left the picture at step ${left}`;
    return `height ${walks.said(section.values("value")[step])}`;
  }

  for (const home of document.querySelectorAll("main .player")) {
    const id = home.dataset.of;
    const steps = Number(home.dataset.steps);
    players.set(id, new walks.Player(home, {
      steps,
      seconds: Math.min(6, steps / 10) + Math.max(0, steps - 60) / 60,
      at: (step) => at(id, step),
      told: (step) => opened.has(id) ? told(opened.get(id), step) : "",
    }));
  }

  // The picture at the top has a player and a start, but no axes.

  unpacked("data-hero").then((buffer) => {
    const home = element("hero");
    const section = new Section(buffer, home);
    const { steps, starts, plots: [{ traces, layout }] } = section.description;
    const layer = new walks.Layer(home.querySelector(".stage"));
    const [left, right, bottom, top] = layout.box;

    function show() {
      const { clientWidth: width, clientHeight: height } = layer.stage;
      layer.show(traces.map((trace) => ({ ...trace, ...numbers(trace, section) })), {
        x: (value) => ((value - left) / (right - left)) * width,
        y: (value) => ((top - value) / (top - bottom)) * height,
      });
    }

    const player = new walks.Player(home.querySelector(".player"), {
      steps,
      seconds: 8,
      at: (step) => layer.at(step),
      told: (step) => traces.filter((trace) => trace.name)
        .map(({ key, name }) => `${name} at height ${walks.said(section.values(`${key}-value`)[step])}`).join(", "),
    });
    new walks.Start(layer, starts, (index) => {
      section.start = index;
      show();
      player.tell();
    });
    show();
    new ResizeObserver(show).observe(layer.stage);
    home.querySelector(".whole").remove(); // the layer shows it
    if (!walks.still.matches) player.play();
  });

  // Plots are drawn when they come near.

  const near = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        const plot = plots.get(target.id);
        plot.visible = isIntersecting;
        const player = players.get(plot.section);
        if (isIntersecting) plot.layer?.at(player.shown());
        else if (plot.ground && player.playing) player.pause();
      }
      drawSoon();
    },
    { rootMargin: "300px" },
  );

  for (const div of document.querySelectorAll(".plot")) {
    const stage = document.createElement("div");
    stage.className = "stage";
    div.replaceWith(stage);
    stage.append(div);
    const plot = { div, section: div.closest("section").id, since: 0, spent: 0, visible: false };
    plots.set(div.id, plot);
    stage.addEventListener("pointerenter", () => freshen(plot));
  }

  const plotly = unpacked("plotly").then((buffer) => {
    const script = document.createElement("script");
    script.textContent = new TextDecoder().decode(buffer);
    document.head.append(script);
    script.remove();
  });

  for (const plot of plots.values()) near.observe(plot.div);

  // Printing: every figure is drawn at once, for paper, before the page is.

  function startPrinting() {
    if (printing || !window.Plotly) return;
    printing = true;
    element("hero").style.width = `${element("hero").clientWidth}px`;
    root.classList.add("printing");
    root.dataset.theme = "light";
    for (const [id, plot] of plots) {
      plot.restyled = true;
      if (opened.has(plot.section)) drawNow(id);
    }
  }

  function stopPrinting() {
    if (!printing) return;
    printing = false;
    element("hero").style.width = "";
    root.classList.remove("printing");
    setTheme();
    redrawAll();
  }

  addEventListener("beforeprint", startPrinting);
  addEventListener("afterprint", stopPrinting);
  matchMedia("print").addEventListener("change", ({ matches }) => (matches ? startPrinting() : stopPrinting()));

  // What prints a page waits for its load event. A document within that is still open holds this event back until
  // everything is unpacked.
  const gate = document.createElement("iframe");
  gate.hidden = true;
  document.body.append(gate);
  gate.contentDocument.open();
  Promise.allSettled([plotly, ...[...plots.values()].map((plot) => sectionOf(plot.section))]).then(() => {
    gate.contentDocument.close();
    gate.remove();
  });

  window.explain = {
    ready: plotly,
    drawn: (id) => draw(id),
    drawings,
  };
})();
