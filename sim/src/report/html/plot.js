// Drawing: axes, series, bands and bars on canvases, a tooltip, and one zoom for all charts over the time of the run.

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const el = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};

// Numbers.

const SI = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
const trim = (value, digits) => {
  if (value === 0) return "0";
  const places = Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(value))));
  const text = value.toFixed(Math.min(places, 9));
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
};
const short = (value) => {
  const [unit, letter] = SI.find(([unit]) => Math.abs(value) >= (unit === 1e3 ? 1e4 : unit)) ?? [1, ""];
  return trim(value / unit, 4) + (letter ? " " + letter : "");
};
const bytes = (value) => {
  const [unit, letter] = SI.find(([unit]) => value >= unit) ?? [1, ""];
  return `${trim(value / unit, 4)} ${letter}B`;
};
// A length of time in seconds, in the unit that reads best.
const span = (s) => {
  if (s === 0) return "0 s";
  if (s >= 100) return `${trim(s, 5)} s`;
  if (s >= 1) return `${trim(s, 4)} s`;
  if (s >= 1e-3) return `${trim(s * 1e3, 4)} ms`;
  return s >= 1e-6 ? `${trim(s * 1e6, 4)} µs` : `${trim(s * 1e9, 4)} ns`;
};
// A point of time in seconds, exact enough for a range of this length.
const point = (s, range) => {
  const places = Math.min(9, Math.max(0, 3 - Math.floor(Math.log10(Math.max(range, 1e-9)))));
  return `${s.toFixed(places)} s`;
};
const steps = (from, to, count) => {
  const raw = (to - from) / Math.max(count, 1);
  if (!(raw > 0)) return [from];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= raw * 0.999);
  const ticks = [];
  for (let index = Math.ceil(from / step - 1e-9); index * step <= to + step * 1e-9; index++) ticks.push(index * step);
  return ticks;
};
const decades = (from, to) => {
  const ticks = [];
  const factors = Math.log10(to / from) > 2.2 ? [1] : [1, 2, 5];
  for (let power = Math.floor(Math.log10(from)); power <= Math.ceil(Math.log10(to)); power++) {
    for (const factor of factors) {
      const tick = factor * 10 ** power;
      if (tick >= from * 0.999 && tick <= to * 1.001) ticks.push(tick);
    }
  }
  return ticks;
};

// The tooltip.

const tip = document.getElementById("tip");
const showTip = (event, text) => {
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  const box = tip.getBoundingClientRect();
  const left = event.clientX + 16 + box.width > innerWidth ? event.clientX - 16 - box.width : event.clientX + 16;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - box.height - 6))}px`;
};

// The part of the run that all charts over time show.

const view = { from: 0, to: 1, end: 1, listeners: [] };
const setView = (from, to) => {
  const least = view.end * 1e-7;
  view.from = Math.max(0, Math.min(from, view.end - least));
  view.to = Math.min(view.end, Math.max(to, view.from + least));
  view.listeners.forEach((listener) => listener());
};

// One chart. `options`: height, label (of the y axis), range() of x, y(plot) -> [low, high] of y (none for rows that draw
// themselves), log (x), draw(plot), hover(plot, x, y) -> text, select(from, to), unitX(tick, range), left.
class Plot {
  constructor(parent, options) {
    this.options = options;
    this.canvas = el("canvas", { role: "img", "aria-label": options.aria ?? options.label ?? "chart" });
    this.canvas.style.height = `${options.height}px`;
    parent.append(this.canvas);
    this.left = options.left ?? 58;
    this.right = 10;
    this.top = 9;
    this.bottom = options.axis === false ? 4 : 21;
    this.drag = null;
    this.canvas.addEventListener("mousemove", (event) => this.onMove(event));
    this.canvas.addEventListener("mouseleave", (event) => {
      if (!this.drag) showTip(event, "");
    });
    if (options.select) {
      this.canvas.addEventListener("mousedown", (event) => {
        this.drag = { from: event.offsetX, to: event.offsetX };
        event.preventDefault();
      });
      addEventListener("mouseup", () => this.onRelease());
      this.canvas.addEventListener("dblclick", () => options.select(null, null));
    }
    all.push(this);
  }

  onMove(event) {
    if (this.drag) {
      this.drag.to = event.offsetX;
      this.draw();
    }
    const inside = event.offsetX >= this.left && event.offsetX <= this.width - this.right;
    showTip(event, inside && this.options.hover ? this.options.hover(this, this.unX(event.offsetX), event.offsetY) : "");
  }

  onRelease() {
    if (!this.drag) return;
    const { from, to } = this.drag;
    this.drag = null;
    if (Math.abs(to - from) > 4) this.options.select(this.unX(Math.min(from, to)), this.unX(Math.max(from, to)));
    else this.draw();
  }

  x(value) {
    const [from, to] = this.rangeX;
    const share = this.options.log ? Math.log(value / from) / Math.log(to / from) : (value - from) / (to - from);
    return this.left + share * (this.width - this.left - this.right);
  }

  unX(pixel) {
    const [from, to] = this.rangeX;
    const share = Math.min(1, Math.max(0, (pixel - this.left) / (this.width - this.left - this.right)));
    return this.options.log ? from * (to / from) ** share : from + share * (to - from);
  }

  y(value) {
    const [low, high] = this.rangeY;
    return this.height - this.bottom - ((value - low) / (high - low)) * (this.height - this.bottom - this.top);
  }

  draw() {
    const { canvas, options } = this;
    this.width = canvas.clientWidth;
    this.height = options.height;
    if (!this.width) return;
    const scale = devicePixelRatio || 1;
    canvas.width = Math.round(this.width * scale);
    canvas.height = Math.round(this.height * scale);
    const c = (this.c = canvas.getContext("2d"));
    c.setTransform(scale, 0, 0, scale, 0, 0);
    c.font = '11px system-ui, "DejaVu Sans", sans-serif';
    c.lineWidth = 1;
    this.rangeX = options.range();
    this.rangeY = options.y ? options.y(this) : [0, 1];
    this.grid();
    c.save();
    c.beginPath();
    c.rect(this.left, 0, this.width - this.left - this.right, this.height - this.bottom + 1);
    c.clip();
    options.draw(this);
    c.restore();
    if (this.drag) {
      c.fillStyle = css("--select");
      c.fillRect(this.drag.from, this.top, this.drag.to - this.drag.from, this.height - this.top - this.bottom);
    }
  }

  grid() {
    const { c, options } = this;
    const [from, to] = this.rangeX;
    const bottom = this.height - this.bottom;
    c.strokeStyle = css("--grid");
    c.fillStyle = css("--soft");
    c.textBaseline = "top";
    const room = this.width - this.left - this.right;
    let free = -Infinity;
    const texts = options.unitX ?? ((tick) => trim(tick, 6));
    if (options.axis !== false) {
      for (const tick of options.log ? decades(from, to) : steps(from, to, Math.max(2, room / 85))) {
        const x = Math.round(this.x(tick)) + 0.5;
        c.beginPath();
        c.moveTo(x, this.top);
        c.lineTo(x, bottom);
        c.stroke();
        const text = texts(tick, to - from);
        const width = c.measureText(text).width;
        const at = Math.min(Math.max(x - width / 2, this.left - 12), this.width - width - 1);
        if (at > free) {
          c.fillText(text, at, bottom + 5);
          free = at + width + 8;
        }
      }
    }
    if (!options.y) return;
    c.textBaseline = "middle";
    const [low, high] = this.rangeY;
    for (const tick of steps(low, high, Math.max(2, (bottom - this.top) / 32))) {
      const y = Math.round(this.y(tick)) + 0.5;
      c.strokeStyle = tick === 0 ? css("--line") : css("--grid");
      c.beginPath();
      c.moveTo(this.left, y);
      c.lineTo(this.width - this.right, y);
      c.stroke();
      const text = (options.unitY ?? short)(tick);
      c.fillText(text, this.left - 6 - c.measureText(text).width, y);
    }
  }

  // The mean, the smallest and the largest value of a step function over columns of a few pixels; none where there is no
  // value.
  columns(data) {
    const wide = COLUMN;
    const columns = Math.ceil((this.width - this.left - this.right) / wide);
    const [from, to] = this.rangeX;
    const step = (to - from) / columns;
    const [area, time] = [new Float64Array(columns), new Float64Array(columns)];
    const [low, high] = [new Float64Array(columns).fill(Infinity), new Float64Array(columns).fill(-Infinity)];
    const add = (begin, end, mean, least, most) => {
      begin = Math.max(begin, from);
      end = Math.min(end, to);
      if (end <= begin) return;
      const last = Math.min(columns - 1, Math.floor((end - from) / step));
      for (let column = Math.floor((begin - from) / step); column <= last; column++) {
        const length = Math.min(end, from + (column + 1) * step) - Math.max(begin, from + column * step);
        if (length <= 0) continue;
        area[column] += mean * length;
        time[column] += length;
        low[column] = Math.min(low[column], least);
        high[column] = Math.max(high[column], most);
      }
    };
    const { at, v, w, lo, hi, l } = data;
    for (let index = Math.max(0, find(data, from)); index < at.length && at[index] <= to; index++) {
      const next = index + 1 < at.length ? at[index + 1] : Infinity;
      if (!hi) {
        add(at[index], next, v[index], v[index], v[index]);
        continue;
      }
      const until = Math.min(at[index] + w, next);
      add(at[index], until, v[index], lo[index], hi[index]);
      add(until, next, l[index], l[index], l[index]);
    }
    return Array.from(area, (sum, column) => (time[column] ? [sum / time[column], low[column], high[column]] : null));
  }

  // A step function as a line of means; with the band between its extremes if asked for. Zoomed in, it is exact.
  series(data, color, { dashed = false, band = false } = {}) {
    if (!data) return;
    const { c } = this;
    const columns = this.columns(data);
    c.fillStyle = c.strokeStyle = color;
    if (band) {
      c.globalAlpha = 0.16;
      columns.forEach((value, column) => {
        if (!value) return;
        const [bottom, top] = [this.y(value[1]), this.y(value[2])];
        if (bottom > top + 0.5) c.fillRect(this.left + column * COLUMN, top, COLUMN, bottom - top);
      });
      c.globalAlpha = 1;
    }
    c.lineWidth = 1.4;
    c.setLineDash(dashed ? [4, 3] : []);
    c.beginPath();
    let open = false;
    columns.forEach((value, column) => {
      if (!value) return;
      const [x, y] = [this.left + column * COLUMN, this.y(value[0])];
      if (open) c.lineTo(x, y);
      else c.moveTo(x, y);
      c.lineTo(x + COLUMN, y);
      open = true;
    });
    c.stroke();
    c.setLineDash([]);
    c.lineWidth = 1;
  }

  // What happened to the deployment, as numbered lines.
  marks(marks, numbered) {
    const { c } = this;
    const taken = [];
    // The script last: what follows from it often happens at the same instant.
    const order = marks.map((mark, index) => [...mark, index]).sort((a, b) => a[3] - b[3] || a[0] - b[0]);
    order.forEach(([at, , , scripted, index]) => {
      if (at < this.rangeX[0] || at > this.rangeX[1]) return;
      const x = Math.round(this.x(at)) + 0.5;
      c.strokeStyle = scripted ? css("--mark") : css("--soft");
      c.setLineDash([3, 3]);
      c.beginPath();
      c.moveTo(x, 0);
      c.lineTo(x, this.height - this.bottom);
      c.stroke();
      c.setLineDash([]);
    });
    if (!numbered) return;
    // Its numbers first, where there is no room for all.
    for (const [at, , , scripted, index] of order.reverse()) {
      const x = this.x(at);
      if (at < this.rangeX[0] || at > this.rangeX[1] || taken.some((other) => Math.abs(other - x) < 16)) continue;
      taken.push(x);
      c.fillStyle = css(scripted ? "--mark" : "--soft");
      c.textBaseline = "top";
      c.fillText(String(index + 1), x + 3, 0);
    }
  }
}

// Pixels over which a series is averaged to be drawn.
const COLUMN = 2;

const all = [];
const drawAll = () => all.forEach((plot) => plot.draw());

// Series come as columns: gaps between buckets of w seconds, means, and the extremes where there are any.
const unpack = (data) => {
  if (!data) return null;
  let bucket = 0;
  data.at = data.t.map((gap) => (bucket += gap) * data.w);
  return data;
};
const find = (data, time) => {
  let [low, high] = [0, data.at.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (data.at[middle] <= time) low = middle + 1;
    else high = middle;
  }
  return low - 1;
};
// Mean, smallest and largest value at a time.
const valueAt = (data, time) => {
  const index = data ? find(data, time) : -1;
  if (index < 0) return [0, 0, 0];
  if (data.hi && time >= data.at[index] + data.w) return [data.l[index], data.l[index], data.l[index]];
  return data.hi ? [data.v[index], data.lo[index], data.hi[index]] : [data.v[index], data.v[index], data.v[index]];
};
const peak = (data) => (data ? (data.hi ?? data.v).reduce((a, b) => Math.max(a, b), 0) : 0);

const legend = (...entries) =>
  el("div", { class: "legend" }, ...entries.map(([name, color, line]) => {
    const swatch = el("i", line ? { class: "line" } : {});
    swatch.style.background = `var(${color})`;
    return el("span", {}, swatch, name);
  }));
const empty = (text) => el("p", { class: "empty" }, text);
