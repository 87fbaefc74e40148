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
    }

    place(axis) {
      const inputs = this.home.querySelectorAll(`input[data-axis="${axis}"]`);
      if (inputs[0].type === "range") return Number(inputs[0].value);
      if (inputs[0].type === "checkbox") return Number(inputs[0].checked);
      return [...inputs].findIndex((input) => input.checked);
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

    values(name) {
      const field = this.fields.get(name);
      const rest = field.shape.slice(field.axes.length);
      const count = product(rest);
      const row = this.row(field);
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
          return first + height * unit;
        });
      } else {
        found = Array.from(new Float32Array(numbers.buffer));
      }
      if (rest.length < 2) return found;
      return Array.from({ length: rest[0] }, (_, i) => found.slice(i * rest[1], (i + 1) * rest[1]));
    }

    text(name) {
      const field = this.fields.get(name);
      return field.axes.reduce((texts, axis) => texts[this.place(axis)], field.texts);
    }
  }

  // Drawing.

  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

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
      title: { text: title, standoff: 8 },
      ...others,
    };
  }

  function layoutOf(plot, section, flat) {
    const { xaxis, yaxis, scene, ...others } = filled(plot.layout, section);
    const layout = {
      font: { family: "system-ui, sans-serif", size: 14, color: colour("--muted") },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 48, r: 20, t: 12, b: 40 }, // a label that does not fit into them is left out
      dragmode: false,
      hovermode: "closest",
      showlegend: false, // the page has its own
      ...others,
    };
    if (scene && !flat) {
      const ratio = { aspectmode: "manual", aspectratio: { x: 1.6, y: 1, z: 0.55 } };
      layout.scene = Object.fromEntries(Object.entries(scene).map(([key, axis]) => [key, { ...axisStyle(axis), fixedrange: undefined, automargin: undefined, title: { text: axis.title } }]));
      Object.assign(layout.scene, ratio, { camera: { eye: camera(element(plot.id).clientWidth < 480 ? 1.3 : 1), center: { x: 0, y: 0, z: -0.15 } }, dragmode: "turntable" });
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

  const inSpace = (trace) => trace.style.type === "surface" || trace.style.type === "scatter3d";
  let hasWebgl;
  let turn = 0;

  // From further away the labels fit into a narrow picture.
  function camera(away) {
    const angle = (-60 + 15 * turn) * (Math.PI / 180);
    return { x: 1.7 * away * Math.cos(angle), y: 1.7 * away * Math.sin(angle), z: 1.5 * away };
  }

  const plots = new Map(); // id: {div, section's id, dirty, visible}
  const sections = new Map(); // id: promise of a Section

  function sectionOf(id) {
    if (!sections.has(id)) {
      sections.set(id, unpacked(`data-${id}`).then((buffer) => {
        const section = new Section(buffer, element(id));
        say(section);
        return section;
      }));
    }
    return sections.get(id);
  }

  function traceOf(trace, section) {
    const length = trace.length ? section.values(trace.length)[0] : undefined;
    const drawn = { type: "scatter", showlegend: Boolean(trace.name), name: trace.name, meta: { key: trace.key }, ...coloured(trace.style) };
    for (const axis of ["x", "y", "z"]) {
      if (trace[axis]) drawn[axis] = section.values(trace[axis]).slice(0, length);
    }
    return drawn;
  }

  async function draw(id) {
    const plot = plots.get(id);
    const section = await sectionOf(plot.section);
    await plotly;
    if (!plot.dirty) return plot.drawing;
    plot.dirty = false;
    const description = section.description.plots.find((each) => each.id === id);
    let traces = description.traces;
    let flat = true;
    if (traces.some(inSpace)) {
      hasWebgl ??= webgl();
      flat = !hasWebgl;
      traces = traces.filter((trace) => inSpace(trace) === hasWebgl);
      element("flat").hidden = hasWebgl;
      element("turn").hidden = !hasWebgl;
    }
    plot.drawing = Plotly.react(
      plot.div,
      traces.map((trace) => traceOf(trace, section)),
      layoutOf(description, section, flat),
      { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false },
    );
    const sentence = section.description.sentence;
    plot.div.setAttribute("aria-label", sentence ? `${description.label} ${section.text(sentence)}` : description.label);
    return plot.drawing;
  }

  let scheduled = false;
  function drawSoon() {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      for (const [id, plot] of plots) if (plot.dirty && plot.visible) draw(id);
    });
  }

  function redrawAll() {
    for (const plot of plots.values()) plot.dirty = true;
    drawSoon();
  }

  // Controls.

  function say(section) {
    const text = section.text(section.description.sentence);
    const [, word, rest] = /^(?:([^ :]+(?: there)?:) )?(.*)$/.exec(text);
    const strong = document.createElement("strong");
    strong.textContent = word ?? "";
    section.home.querySelector(".say").replaceChildren(strong, word ? ` ${rest}` : rest);
  }

  function showValue(input) {
    if (input.type !== "range") return;
    const text = JSON.parse(input.dataset.texts)[input.value];
    input.setAttribute("aria-valuetext", text);
    input.closest(".control").querySelector("output").textContent = text;
  }

  async function moved(input) {
    showValue(input);
    for (const id of input.dataset.plots.split(" ")) if (id) plots.get(id).dirty = true;
    drawSoon();
    say(await sectionOf(input.closest("section").id));
  }

  for (const input of document.querySelectorAll("input[data-axis]")) {
    showValue(input); // a browser may have kept another value than the page's
    input.addEventListener("input", () => moved(input));
  }

  for (const button of document.querySelectorAll("button.try")) {
    button.addEventListener("click", () => {
      const home = button.closest("section");
      for (const [axis, place] of Object.entries(JSON.parse(button.dataset.set))) {
        const inputs = home.querySelectorAll(`input[data-axis="${axis}"]`);
        if (inputs[0].type === "range") inputs[0].value = place;
        else if (inputs[0].type === "checkbox") inputs[0].checked = Boolean(place);
        else inputs[place].checked = true;
        moved(inputs[0]);
      }
    });
  }

  for (const button of document.querySelectorAll("#turn button")) {
    button.addEventListener("click", () => {
      turn += Number(button.dataset.turn);
      plots.get("descent-surface").dirty = true;
      drawSoon();
    });
  }

  // Plots are drawn when they come near.

  const near = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) plots.get(entry.target.id).visible = entry.isIntersecting;
      drawSoon();
    },
    { rootMargin: "300px" },
  );

  for (const div of document.querySelectorAll(".plot")) {
    plots.set(div.id, { div, section: div.closest("section").id, dirty: true, visible: false });
  }

  const plotly = unpacked("plotly").then((buffer) => {
    const script = document.createElement("script");
    script.textContent = new TextDecoder().decode(buffer);
    document.head.append(script);
    script.remove();
  });

  for (const plot of plots.values()) near.observe(plot.div);

  window.explain = {
    ready: plotly,
    drawn: (id) => draw(id),
  };
})();
