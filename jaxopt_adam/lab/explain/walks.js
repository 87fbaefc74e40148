"use strict";

// Walks drawn over a picture as SVG, players that go along them, and starts that a reader can move. All points are given.
const walks = (() => {
  const still = matchMedia("(prefers-reduced-motion: reduce)");

  const DASHES = { solid: "none", dot: "1 5", dash: "8 5", longdash: "13 5", dashdot: "8 4 1 4" };
  const NARROW = 480; // pixels, under which lines and marks are smaller
  const ARROW_EVERY = 64; // pixels along the path
  const ARROW_APART = 18;
  const TAIL = 6; // steps

  const SYMBOLS = {
    circle: (x, y, r) => `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0z`,
    square: (x, y, r) => `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
    diamond: (x, y, r) => `M${x},${y - 1.3 * r}l${1.3 * r},${1.3 * r}l${-1.3 * r},${1.3 * r}l${-1.3 * r},${-1.3 * r}z`,
    "triangle-up": (x, y, r) => `M${x},${y - 1.2 * r}l${1.2 * r},${2 * r}h${-2.4 * r}z`,
    x: (x, y, r) => `M${x - r},${y - r}l${2 * r},${2 * r}m0,${-2 * r}l${-2 * r},${2 * r}`,
    star: (x, y, r) =>
      `M${Array.from({ length: 10 }, (_, i) => {
        const reach = i % 2 ? 0.45 * r : 1.2 * r;
        return `${x + reach * Math.sin((i * Math.PI) / 5)},${y - reach * Math.cos((i * Math.PI) / 5)}`;
      }).join("L")}z`,
  };

  function make(tag, attributes, parent) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    parent.append(made);
    return made;
  }

  const paint = (colour) => (colour.startsWith("--") ? `var(${colour})` : colour);
  const polyline = (points) => (points.length > 1 ? `M${points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join("L")}` : "");

  // A walk: the way done, the way ahead, a mark at each step, arrows, and the point that goes along.
  class Walk {
    constructor(style, parent) {
      const { color, width = 2, dash = "solid" } = style.line;
      this.marker = style.marker;
      this.width = width;
      const group = make("g", { class: "walk", style: `--own: ${paint(color)}` }, parent);
      const dashes = { "stroke-dasharray": DASHES[dash] };
      this.ahead = make("path", { class: "ahead", ...dashes }, group);
      this.tail = make("path", { class: "tail", "stroke-width": width + 4 }, group);
      this.done = make("path", { class: "done", ...dashes }, group);
      this.marks = make("path", { class: "marks" }, group);
      this.arrows = make("path", { class: "arrows", "stroke-width": width }, group);
      this.head = make("path", { class: "head" }, group);
    }

    show(points, scale) {
      this.points = points;
      const symbol = SYMBOLS[this.marker.symbol];
      const radius = (scale * this.marker.size) / 2;
      for (const each of [this.ahead, this.done]) each.setAttribute("stroke-width", scale * this.width);
      const stride = Math.ceil(points.length / (this.marker.maxdisplayed ?? Infinity)) || 1;
      this.marked = points.map(([x, y], i) => (i % stride ? "" : symbol(x, y, radius)));
      let gone = ARROW_EVERY / 2;
      const tips = [];
      this.pointed = points.slice(1).map(([x, y], i) => {
        const [dx, dy] = [x - points[i][0], y - points[i][1]];
        const length = Math.hypot(dx, dy);
        gone += length;
        if (gone < ARROW_EVERY || length < 1) return "";
        const [u, v] = [(5 * dx) / length, (5 * dy) / length];
        const [tipX, tipY] = [points[i][0] + 0.6 * dx + u / 2, points[i][1] + 0.6 * dy + v / 2];
        if (tips.some((tip) => Math.hypot(tip[0] - tipX, tip[1] - tipY) < ARROW_APART)) return "";
        gone = 0;
        tips.push([tipX, tipY]);
        return `M${tipX - u - 0.8 * v},${tipY - v + 0.8 * u}L${tipX},${tipY}L${tipX - u + 0.8 * v},${tipY - v - 0.8 * u}`;
      });
    }

    at(step) {
      const last = this.points.length - 1;
      const gone = Math.min(step, last);
      const i = Math.floor(gone);
      const head = this.between(i, gone - i);
      const until = this.points.slice(0, i + 1);
      this.done.setAttribute("d", polyline(gone > i ? [...until, head] : until));
      this.ahead.setAttribute("d", gone < last ? polyline([head, ...this.points.slice(i + 1)]) : "");
      this.tail.setAttribute("d", gone < last ? polyline([...this.points.slice(Math.max(0, i - TAIL), i + 1), head]) : "");
      this.marks.setAttribute("d", this.marked.slice(0, i + 1).join(""));
      this.arrows.setAttribute("d", this.pointed.slice(0, i).join(""));
      this.head.setAttribute("d", head ? SYMBOLS[this.marker.symbol](head[0], head[1], this.marker.size / 2 + 3) : "");
    }

    between(i, part) {
      const [here, next] = [this.points[i], this.points[i + 1]];
      if (!here || !next || !part) return here;
      return [here[0] + part * (next[0] - here[0]), here[1] + part * (next[1] - here[1])];
    }
  }

  // What lies over a picture. A frame says where the picture's numbers are: {left, top, width, height, x(), y()}.
  class Layer {
    constructor(stage) {
      this.stage = stage;
      this.svg = make("svg", { class: "layer", "aria-hidden": "true" }, stage);
      this.step = Infinity;
      this.parts = new Map();
    }

    // Traces are {key, style, x, y}, with styles of Plotly. Those with lines are walks.
    show(traces, frame) {
      this.traces = traces;
      this.frame = frame;
      for (const { key, style, x, y } of traces) {
        const points = Array.from(x, (each, i) => [frame.x(each), frame.y(y[i])]);
        if (key === "start" && this.start) this.start.place(x[0], y[0], points[0]);
        else if (style.mode.includes("lines")) {
          if (!this.parts.has(key)) this.parts.set(key, new Walk({ marker: { symbol: "circle", size: 0 }, ...style }, this.svg));
          this.parts.get(key).show(points, this.svg.clientWidth < NARROW ? 0.7 : 1);
        } else {
          if (!this.parts.has(key)) this.parts.set(key, make("path", { class: "mark", style: `--own: ${paint(style.marker.color)}` }, this.svg));
          const { symbol, size } = style.marker;
          const open = symbol.endsWith("-open");
          this.parts.get(key).classList.toggle("open", open || symbol === "x");
          this.parts.get(key).setAttribute("d", points.map(([left, top]) => SYMBOLS[symbol.replace("-open", "")](left, top, size / 2)).join(""));
        }
      }
      this.at(this.step);
    }

    // A line at the step, over curves of the steps.
    rule(frame) {
      this.frame = frame;
      this.line ??= make("path", { class: "rule" }, this.svg);
      this.at(this.step);
    }

    // The step Infinity is the whole walk at rest.
    at(step) {
      this.step = step;
      for (const part of this.parts.values()) if (part instanceof Walk) part.at(step);
      if (!this.line) return;
      const left = this.frame.x(step);
      const within = Number.isFinite(left) && left >= this.frame.left && left <= this.frame.left + this.frame.width;
      this.line.setAttribute("d", within ? `M${left},${this.frame.top}v${this.frame.height}` : "");
    }
  }

  // The circle at the start. It goes from one of the given starts to another, by hand or by the arrow keys.
  class Start {
    constructor(layer, starts, moved) {
      this.layer = layer;
      this.starts = starts;
      this.moved = moved;
      layer.start = this;
      const { style } = (this.element = document.createElement("div"));
      this.style = style;
      this.element.className = "start";
      this.element.tabIndex = 0;
      const named = { role: "slider", "aria-label": "Start of the walk", "aria-valuemin": 0, "aria-valuemax": starts.length };
      for (const [name, value] of Object.entries(named)) this.element.setAttribute(name, value);
      layer.stage.append(this.element);
      this.element.addEventListener("pointerdown", (event) => this.grip(event));
      this.element.addEventListener("keydown", (event) => this.key(event));
    }

    place(x, y, [left, top]) {
      this.at = [x, y];
      this.style.left = `${left}px`;
      this.style.top = `${top}px`;
      const index = this.starts.findIndex((each) => Math.hypot(each[0] - x, each[1] - y) < 1e-6);
      if (index < 0) this.own = this.at;
      this.element.dataset.start = index < 0 ? "" : JSON.stringify(this.starts[index]);
      this.element.setAttribute("aria-valuenow", index + 1);
      this.element.setAttribute("aria-valuetext", `x = ${said(x)}, y = ${said(y)}${index < 0 ? ", its own place" : ""}`);
    }

    grip(event) {
      this.element.setPointerCapture(event.pointerId);
      this.dots();
      const drag = (event) => {
        const box = this.layer.stage.getBoundingClientRect();
        const pointer = [event.clientX - box.left, event.clientY - box.top];
        const { frame } = this.layer;
        const far = this.choices().map(([x, y]) => Math.hypot(frame.x(x) - pointer[0], frame.y(y) - pointer[1]));
        this.choose(far.indexOf(Math.min(...far)));
      };
      const drop = () => {
        this.element.removeEventListener("pointermove", drag);
        this.grid.remove();
      };
      this.element.addEventListener("pointermove", drag);
      this.element.addEventListener("lostpointercapture", drop, { once: true });
    }

    dots() {
      const { frame, svg } = this.layer;
      const circle = ([x, y]) => SYMBOLS.circle(frame.x(x), frame.y(y), 1.5);
      this.grid = make("path", { class: "grid", d: this.choices().map(circle).join("") }, svg);
    }

    choices() {
      return this.own ? [this.own, ...this.starts] : this.starts;
    }

    choose(place) {
      const index = this.own ? place - 1 : place;
      if (index !== this.chosen) this.moved((this.chosen = index));
    }

    key(event) {
      const towards = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      if (event.key === "Home" && this.own) this.choose(0);
      else if (towards) {
        const far = this.choices().map(([x, y]) => {
          const [dx, dy] = [x - this.at[0], y - this.at[1]];
          const [along, aside] = [dx * towards[0] + dy * towards[1], dx * towards[1] - dy * towards[0]];
          return along > 1e-6 ? along + 4 * Math.abs(aside) : Infinity;
        });
        const nearest = Math.min(...far);
        if (Number.isFinite(nearest)) this.choose(far.indexOf(nearest));
      } else return;
      event.preventDefault();
    }
  }

  const said = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(3))).replace("-", "−") : "");

  // Play, pause and the step. `at(step)` draws it; `told(step)` says it.
  class Player {
    constructor(home, { steps, seconds, at, told = () => "" }) {
      Object.assign(this, { home, steps, at, told, speed: steps / seconds, step: steps, playing: false });
      const id = `walk-${home.dataset.of}`;
      home.setAttribute("role", "group");
      home.setAttribute("aria-label", "The walk, step by step");
      home.innerHTML =
        `<button type="button" class="play"></button>` +
        `<button type="button" class="by" data-by="-1" aria-label="One step back">‹</button>` +
        `<input type="range" id="${id}" min="0" max="${steps}" step="1" value="${steps}">` +
        `<button type="button" class="by" data-by="1" aria-label="One step forward">›</button>` +
        `<div class="words"><label for="${id}">Step</label> <output for="${id}"></output></div>`;
      this.input = home.querySelector("input");
      this.input.value = steps;
      this.output = home.querySelector("output");
      this.button = home.querySelector(".play");
      this.button.addEventListener("click", () => (this.playing ? this.pause() : this.play()));
      this.input.addEventListener("input", () => this.go(Number(this.input.value)));
      for (const button of home.querySelectorAll(".by")) {
        button.addEventListener("click", () => this.go(Math.round(this.step) + Number(button.dataset.by)));
      }
      this.named();
      this.tell();
    }

    named() {
      this.button.innerHTML = this.playing ? '<span aria-hidden="true">❚❚</span> Pause' : '<span aria-hidden="true">▶</span> Play';
    }

    tell() {
      const whole = Math.floor(this.step);
      this.input.value = whole;
      const text = this.told(whole);
      this.output.textContent = text ? `${whole}: ${text}` : String(whole);
      this.input.setAttribute("aria-valuetext", `${whole} of ${this.steps}${text ? `, ${text}` : ""}`);
    }

    go(step) {
      if (this.playing) this.pause();
      this.show(step);
    }

    show(step) {
      const before = Math.floor(this.step);
      this.step = Math.max(0, Math.min(this.steps, step));
      this.at(this.shown());
      if (Math.floor(this.step) !== before) this.tell();
    }

    shown() {
      if (this.step >= this.steps && !this.playing) return Infinity;
      return still.matches ? Math.floor(this.step) : this.step;
    }

    play() {
      if (this.step >= this.steps) this.show(0);
      this.playing = true;
      this.named();
      let before;
      const on = (now) => {
        if (!this.playing) return;
        this.show(this.step + (before === undefined ? 0 : (Math.min(now - before, 100) / 1000) * this.speed));
        before = now;
        if (this.step >= this.steps) this.pause();
        else requestAnimationFrame(on);
      };
      requestAnimationFrame(on);
    }

    pause() {
      this.playing = false;
      this.named();
      this.show(Math.floor(this.step));
    }
  }

  return { still, Layer, Player, Start, said };
})();
