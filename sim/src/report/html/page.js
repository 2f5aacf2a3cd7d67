// What is on the page, in order: verdict, figures, distributions, requests, cache, workers, transfers, slowest requests.

const data = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("main");
// What a run lingers after its last answer and its last move of pages is not worth looking at.
const lasts = [data.served, ...data.moves.rows.map((row) => row[3] + row[4]), ...data.marks.map((mark) => mark[0])];
view.end = view.to = Math.min(Math.max(data.end, 1e-9), Math.max(...lasts) * 1.02);
const overTime = () => [view.from, view.to];
const zoomTo = (from, to) => (from === null ? setView(0, view.end) : setView(from, to));
const timeTick = (tick, range) => (range < 0.01 ? `${trim(tick * 1e3, 8)} ms` : `${trim(tick, 8)} s`);
const section = (title, about) => main.append(el("h2", {}, title), ...(about ? [el("p", { class: "soft" }, about)] : []));
const table = (heads, rows, left = 1) =>
  el("div", { class: "wide" }, el("table", {},
    el("thead", {}, el("tr", {}, ...heads.map((head, at) => el("th", at < left ? {} : { class: "n" }, head)))),
    el("tbody", {}, ...rows.map((row) =>
      el("tr", {}, ...row.map((cell, at) => el("td", at < left ? {} : { class: "n" }, cell)))))));
const chart = (parent, options) => {
  const plot = new Plot(parent, { range: overTime, select: zoomTo, unitX: timeTick, ...options });
  view.listeners.push(() => plot.draw());
  return plot;
};

header();
distributions();
zoomBar();
gantt();
cache();
workers();
transfers();
slowest();
drawAll();
new ResizeObserver(drawAll).observe(main);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);

function header() {
  main.append(el("h1", {}, data.name), el("p", { class: "about" }, data.about.replace(/\s+/g, " ")));
  const broken = data.gates.filter(([, found]) => found !== null);
  const isGood = broken.length === 0 && data.violations === 0;
  const count = data.gates.length;
  const held = count === 1 ? "The gate held." : `All ${count} gates held.`;
  const verdict = isGood ? held : [
    broken.length ? `${broken.length} of ${count} gates did not hold.` : "",
    data.violations ? `${data.violations} violations of what must never happen, the first: ${data.violation}.` : "",
  ].join(" ");
  main.append(el("div", { class: isGood ? "verdict" : "verdict bad" }, el("b", {}, verdict), " ", limiting(),
    el("details", broken.length ? { open: "" } : {}, el("summary", {}, "gates"),
      table(["gate", "held", "found"], data.gates.map(([gate, found]) =>
        [gate, found === null ? "yes" : "NO", found ?? ""]), 3))));
  const left = el("div", {}, table(["", ""], data.figures.map(([key, text]) => [key, text]), 2));
  left.querySelector("thead").remove();
  left.querySelectorAll("td:first-child").forEach((cell) => cell.classList.add("key"));
  left.append(el("h3", {}, "Latency, ms (requests with their whole answer)"), data.latencies.length
    ? table(["", "count", "mean", "P50", "P90", "P99", "max"], data.latencies.map(([name, n, ...values]) =>
      [name, short(n), ...values.map((value) => value.toFixed(2))]))
    : empty("No request got its whole answer, so there are no latencies."));
  const right = el("div", {}, el("h3", {}, "How busy each resource was while requests were served"));
  if (!data.utilisation.length) right.append(empty("Nothing was busy for a measurable part of the run."));
  for (const [how, list] of data.utilisation) {
    const row = ([share, what]) => {
      const bar = el("span", { class: "bar" });
      bar.style.width = `${Math.max(share, 0.5)}%`;
      return el("tr", {}, el("td", {}, what), el("td", { class: "n" }, `${share.toFixed(1)} %`), el("td", { class: "meter" }, bar));
    };
    const rows = (list) => el("table", { class: "use" }, el("tbody", {}, ...list.map(row)));
    right.append(el("div", { class: "soft" }, how), rows(list.slice(0, 4)));
    if (list.length > 4) right.append(el("details", {}, el("summary", {}, `${list.length - 4} more`), rows(list.slice(4))));
  }
  main.append(el("div", { class: "columns" }, left, right));
  if (data.marks.length) {
    main.append(el("h3", {}, "What happened to the deployment (dashed lines in the charts)"));
    const item = ([at, , label, scripted]) => el("li", scripted ? { class: "fault" } : {}, `${point(at, view.end)}: ${label}`);
    const list = (marks, start) => el("ol", { class: "marks", start }, ...marks.map(item));
    main.append(list(data.marks.slice(0, 12), 1));
    if (data.marks.length > 12) {
      main.append(el("details", {}, el("summary", {}, `${data.marks.length - 12} more`), list(data.marks.slice(12), 13)));
    }
  }
}

function limiting() {
  const devices = data.utilisation.filter(([how]) => !how.startsWith("memory")).map(([, list]) => list[0]);
  const busiest = devices.sort((a, b) => b[0] - a[0])[0];
  const memory = data.utilisation.find(([how, list]) => how.startsWith("memory") && list[0][0] >= 95)?.[1][0];
  const full = memory ? ` ${memory[1]} was in use to ${memory[0].toFixed(0)} % at its peak: memory may have held requests back.` : "";
  if (!busiest) return `No device was busy for a measurable part of the run.${full}`;
  const [share, what] = busiest;
  const text = `${what}, ${share.toFixed(1)} % busy`;
  if (share >= 80) return `What limited the run: ${text} while requests were served.${full}`;
  if (share >= 50) return `The busiest resource was the ${text}: near its limit, not at it.${full}`;
  return `No device was busy for even half of the time; the busiest was the ${text}. The load sets the pace, not the hardware.${full}`;
}

function distributions() {
  section("Latency distributions", "Share of requests (or tokens) that took no longer than this. Hover to read a percentile.");
  const grid = main.appendChild(el("div", { class: "grid" }));
  for (const curve of data.curves) {
    const box = grid.appendChild(el("div", {}, el("h3", {}, `${curve.name}: ${curve.what}`)));
    if (curve.count < 2) {
      box.append(empty(curve.count === 0
        ? `No request has a ${curve.name}${curve.name === "TPOT" || curve.name === "ITL" ? " (it takes an answer of two tokens)" : ""}.`
        : `Only one sample: ${span(curve.x[0] / 1e3)}.`));
      continue;
    }
    const [p50, p90, p99] = curve.marks.map((mark) => span(mark / 1e3));
    box.append(el("div", { class: "legend" }, el("span", {}, dot(), `P50 ${p50}`), el("span", {}, dot(), `P90 ${p90}`), el("span", {}, dot(), `P99 ${p99}`),
      el("span", {}, `of ${short(curve.count)} ${curve.name === "ITL" ? "gaps" : "requests"}`)));
    let [low, high] = [curve.x[0], curve.x[curve.x.length - 1]];
    const log = low > 0 && high / low > 30;
    if (high === low) [low, high] = [low * 0.9, high * 1.1 || 1];
    const pad = log ? 1 : (high - low) * 0.04;
    const range = log ? [low * 0.95, high * 1.05] : [Math.max(0, low - pad), high + pad];
    new Plot(box, {
      height: 190, log, range: () => range, y: () => [0, 100], unitY: (tick) => `${tick} %`,
      unitX: (tick) => span(tick / 1e3), aria: `cumulative distribution of ${curve.name}`,
      draw(p) {
        const { c } = p;
        c.strokeStyle = css("--c0");
        c.lineWidth = 1.8;
        c.beginPath();
        c.moveTo(p.x(curve.x[0]), p.y(0));
        curve.x.forEach((value, at) => {
          c.lineTo(p.x(value), p.y(at ? curve.y[at - 1] : 0));
          c.lineTo(p.x(value), p.y(curve.y[at]));
        });
        c.stroke();
        [50, 90, 99].forEach((share, at) => {
          const [x, y] = [p.x(curve.marks[at]), p.y(share)];
          c.fillStyle = c.strokeStyle = css("--mark");
          c.lineWidth = 1;
          c.setLineDash([2, 3]);
          c.beginPath();
          c.moveTo(x, y);
          c.lineTo(x, p.y(0));
          c.stroke();
          c.setLineDash([]);
          c.beginPath();
          c.arc(x, y, 3.5, 0, 7);
          c.fill();
        });
      },
      hover(p, x) {
        const at = curve.x.findLastIndex((value) => value <= x);
        return `${at < 0 ? 0 : curve.y[at]} % of ${short(curve.count)} took at most ${span(x / 1e3)}`;
      },
    });
  }
}

function dot() {
  const dot = el("i");
  dot.style.cssText = "background: var(--mark); border-radius: 50%; width: 8px; height: 8px; vertical-align: 0";
  return dot;
}

// Stretches of time in which requests were served, where long idle times separate them.
function busyTimes() {
  const idle = view.end * 0.04;
  const spans = data.requests.rows.map(([, arrival, phases]) => [arrival, arrival + (phases.length ? phases[phases.length - 1] : 0)]);
  spans.sort((a, b) => a[0] - b[0]);
  const merged = [];
  for (const [from, to] of spans) {
    const last = merged[merged.length - 1];
    if (last && from <= last[1] + idle) last[1] = Math.max(last[1], to);
    else merged.push([from, to]);
  }
  const pad = ([from, to]) => [from - (to - from) * 0.06, to + (to - from) * 0.25, from];
  return merged.length > 1 && merged.length <= 8 ? merged.map(pad) : [];
}

function zoomBar() {
  const text = el("span", { class: "soft" });
  const bar = el("div", { class: "zoom" }, el("b", {}, "Time"), text,
    el("button", { onclick: () => zoomTo(null) }, "whole run"),
    el("button", { onclick: () => zoom(0.5) }, "zoom in"), el("button", { onclick: () => zoom(2) }, "zoom out"),
    el("button", { onclick: () => pan(-0.5) }, "◀"), el("button", { onclick: () => pan(0.5) }, "▶"),
    ...busyTimes().map(([from, to, begin]) =>
      el("button", { onclick: () => zoomTo(from, to), title: "requests are served here" }, `requests at ${span(begin)}`)),
    el("span", { class: "soft" }, "Drag over any chart of time to zoom all of them; double-click for the whole run."));
  main.append(bar);
  const zoom = (factor) => {
    const [middle, half] = [(view.from + view.to) / 2, ((view.to - view.from) / 2) * factor];
    setView(middle - half, middle + half);
  };
  const pan = (share) => {
    const range = view.to - view.from;
    const from = Math.max(0, Math.min(view.end - range, view.from + share * range));
    setView(from, from + range);
  };
  const say = () => (text.textContent = `${point(view.from, view.to - view.from)} to ${point(view.to, view.to - view.from)}`);
  view.listeners.push(say);
  say();
}

function gantt() {
  const { count, worst, rest, step, rows } = data.requests;
  const parts = [];
  if (count > worst) {
    parts.push(`Of ${count} requests, the ${worst} slowest to their first token are here`);
    parts.push(step > 1 ? `and one in ${step} of the other ${rest}.` : `and the other ${rest}.`);
  }
  section("Requests", `Where the time of each request went, from its arrival to its last token. ${parts.join(" ")}`);
  if (!rows.length) return void main.append(empty("No request arrived in this run."));
  main.append(legend(...data.phases.map((name) => [name, `--${name}`])));
  const few = count <= 40;
  const order = el("select", {}, el("option", { value: "worst" }, "slowest first"), el("option", { value: "arrival" }, "by arrival"));
  const axis = el("select", {}, el("option", { value: "run" }, "time of the run"), el("option", { value: "self" }, "time since arrival"));
  const depth = el("select", {}, el("option", { value: "all" }, "up to the last token"), el("option", { value: "first" }, "up to the first token"));
  order.value = few ? "arrival" : "worst";
  axis.value = few ? "run" : "self";
  depth.value = few ? "all" : "first";
  main.append(el("div", { class: "controls" }, el("label", {}, "Order ", order), el("label", {}, "Axis ", axis), el("label", {}, "Show ", depth)));
  const height = 15;
  const visible = Math.min(rows.length * height + 34, 470);
  const box = main.appendChild(el("div", { class: "scroll" }));
  box.style.height = `${visible}px`;
  const spacer = el("div");
  let list = [];
  let zoomed = null;
  const ends = (row) => {
    const [, , phases, ttft, e2e] = row;
    const last = phases.length ? phases[phases.length - 1] : 0;
    return depth.value === "first" && ttft !== null ? ttft / 1e3 : e2e !== null ? e2e / 1e3 : last;
  };
  const range = () => {
    if (axis.value === "run") return overTime();
    return zoomed ?? [0, Math.max(...rows.map(ends), 1e-9) * 1.02];
  };
  const plot = new Plot(box, {
    height: visible - 2, left: 98, range, unitX: timeTick, aria: "phases of requests over time",
    select(from, to) {
      if (axis.value === "run") return zoomTo(from, to);
      zoomed = from === null ? null : [from, to];
      plot.draw();
    },
    draw(p) {
      const { c } = p;
      const top = box.scrollTop;
      const run = axis.value === "run";
      c.restore();
      c.save();
      list.forEach((row, at) => {
        const y = p.top + at * height - top;
        if (y < -height || y > p.height - p.bottom - height + 4) return;
        const [index, arrival, phases] = row;
        const zero = run ? arrival : 0;
        const until = ends(row);
        c.fillStyle = css(row[12] && count > worst ? "--text" : "--soft");
        c.textBaseline = "middle";
        c.fillText(`request ${index}`, 4, y + height / 2);
        let from = 0;
        for (let part = 0; part < phases.length; part += 2) {
          const to = Math.min(phases[part + 1], until);
          const [left, right] = [p.x(zero + from), p.x(zero + to)];
          from = to;
          if (right < p.left || left > p.width - p.right) continue;
          const x = Math.max(left, p.left);
          c.fillStyle = css(`--${data.phases[phases[part]]}`);
          c.fillRect(x, y + 2, Math.max(0.7, Math.min(right, p.width - p.right) - x), height - 4);
        }
        if (row[8]) {
          const x = Math.min(Math.max(p.x(zero + until) + 3, p.left), p.width - 90);
          c.fillStyle = css("--bad");
          c.fillText(row[8], x, y + height / 2);
        }
      });
      if (run) p.marks(data.marks, true);
    },
    hover(p, x, y) {
      const row = list[Math.floor((y + box.scrollTop - p.top) / height)];
      return row ? describe(row) : "";
    },
  });
  box.append(spacer);
  view.listeners.push(() => plot.draw());
  const arrange = () => {
    list = rows.slice();
    if (order.value === "arrival") list.sort((a, b) => a[1] - b[1] || a[0] - b[0]);
    else list.sort((a, b) => waited(b) - waited(a) || a[0] - b[0]);
    spacer.style.height = `${Math.max(0, list.length * height + 34 - visible)}px`;
    zoomed = null;
    plot.draw();
  };
  box.addEventListener("scroll", () => plot.draw());
  for (const control of [order, axis, depth]) control.addEventListener("change", arrange);
  arrange();
}

// How long a request waited for its first token, or for nothing, in ms.
function waited(row) {
  return row[3] ?? 1e3 * phaseTimes(row).reduce((sum, time) => sum + time, 0);
}

// Time in each phase, in seconds.
function phaseTimes(row) {
  const times = data.phases.map(() => 0);
  let from = 0;
  for (let part = 0; part < row[2].length; part += 2) {
    times[row[2][part]] += row[2][part + 1] - from;
    from = row[2][part + 1];
  }
  return times;
}

function describe(row) {
  const [index, arrival, , ttft, e2e, prompt, [l1, l2, l3], tokens, end, prefill, decode, misses] = row;
  const times = phaseTimes(row).map((time, at) => (time > 0 ? `${data.phases[at]} ${span(time)}` : "")).filter(Boolean);
  const place = prefill !== null ? `prefill on worker ${prefill}, decode on worker ${decode}` : decode !== null ? `worker ${decode}` : "never sent to a worker";
  return [
    `request ${index}, arrived at ${point(arrival, view.end)}; ${place}`,
    times.join(", "),
    `TTFT ${ttft === null ? "none" : span(ttft / 1e3)}, E2E ${e2e === null ? "none" : span(e2e / 1e3)}, ${tokens} tokens${end ? `, ${end}` : ""}`,
    `prompt ${prompt} tokens: L1 ${l1}, L2 ${l2}, L3 ${l3}${misses ? `; not cached: ${misses}` : ""}`,
  ].join("\n");
}

function stacked(title, what, layers, colors, emptyText) {
  main.append(el("h3", {}, title));
  if (!layers.some(([, counts]) => counts.some((count) => count > 0))) return void main.append(empty(emptyText));
  main.append(legend(...layers.map(([name], at) => [name, colors[at % colors.length]])));
  const { width } = data.bins;
  const sums = layers[0][1].map((_, bin) => layers.reduce((sum, [, counts]) => sum + counts[bin], 0));
  const high = Math.max(...sums) * 1.08;
  chart(main.appendChild(el("div")), {
    height: 150, y: () => [0, high], aria: title,
    draw(p) {
      const { c } = p;
      sums.forEach((sum, bin) => {
        if (!sum) return;
        const x = p.x(bin * width);
        const wide = Math.max(1.5, p.x((bin + 1) * width) - x - 0.5);
        let below = 0;
        layers.forEach(([, counts], at) => {
          if (!counts[bin]) return;
          c.fillStyle = css(colors[at % colors.length]);
          c.fillRect(x, p.y(below + counts[bin]), wide, p.y(below) - p.y(below + counts[bin]));
          below += counts[bin];
        });
      });
      p.marks(data.marks, true);
    },
    hover(p, x) {
      const bin = Math.floor(x / width);
      if (!sums[bin]) return `${point(x, view.to - view.from)}: no prompt was admitted`;
      const lines = layers.filter(([, counts]) => counts[bin]).map(([name, counts]) => `${name}: ${counts[bin]} ${what}`);
      return [`${span(bin * width)} to ${span((bin + 1) * width)}: ${sums[bin]} ${what}`, ...lines].join("\n");
    },
  });
}

function cache() {
  const { tiers, reasons, width } = data.bins;
  section("Cache", `Tokens of prompts by the time of their admission, in steps of ${span(width)}.`);
  const computed = tiers[0].map((_, bin) => reasons.reduce((sum, [, counts]) => sum + counts[bin], 0));
  const layers = [["from L1", tiers[0]], ["from L2", tiers[1]], ["from L3", tiers[2]], ["not cached", computed]];
  stacked("Where the KV of prompts came from (tokens)", "tokens", layers, ["--c0", "--c2", "--c4", "--c7"], "No prompt was admitted in this run.");
  stacked("Why tokens were not cached", "tokens", reasons, ["--c1", "--c3", "--c5", "--c6", "--c8", "--c9", "--c7", "--c4", "--c2", "--c0"], "No token was missed: every prompt came from the cache.");
}

function workers() {
  section("Workers", "Pages of each tier, requests and GPU over time. Lines are means over their width, shades reach from the smallest to the largest value in it; dashed lines are pages that cannot be freed.");
  main.append(legend(["L1 used", "--c0", 1], ["L1 pinned", "--c3", 1], ["L2 used", "--c2", 1], ["L2 pinned", "--c5", 1],
    ["waiting", "--c1", 1], ["running", "--c4", 1], ["GPU busy", "--c8", 1]));
  const heads = ["", "pages in use, % of the tier", "requests", "GPU busy, %"];
  main.append(el("div", { class: "worker soft" }, ...heads.map((head) => el("div", {}, head))));
  data.workers.forEach((worker, index) => {
    const parts = ["used", "pinned"].flatMap((kind) => worker[kind].map((series, tier) => {
      unpack(series);
      return [`L${tier + 1} ${kind}`, series, worker.pages[tier], { used: ["--c0", "--c2"], pinned: ["--c3", "--c5"] }[kind][tier]];
    })).filter(([, series, pages]) => series && pages);
    const [running, waiting, busy] = [worker.running, worker.waiting, worker.busy].map(unpack);
    unpack(worker.stored);
    const name = el("div", {}, el("b", {}, `worker ${index}`), el("div", { class: "soft" }, worker.mode),
      el("div", { class: "soft", title: "pages" }, `L1 ${short(worker.pages[0])}`), worker.pages[1] ? el("div", { class: "soft" }, `L2 ${short(worker.pages[1])}`) : null);
    const [tiers, queue, gpu] = [el("div"), el("div"), el("div")];
    main.append(el("div", { class: "worker" }, name, tiers, queue, gpu));
    const marks = data.marks.filter(([, other]) => other === null || other === index);
    const height = 104;
    if (parts.length) {
      const high = Math.max(...parts.map(([, series, pages]) => (100 * peak(series)) / pages), 1);
      chart(tiers, {
        height, left: 44, y: () => [0, Math.min(105, high * 1.1)], unitY: (tick) => trim(tick, 3), aria: `pages of worker ${index}`,
        draw(p) {
          for (const [name, series, pages, color] of parts) p.series(scaled(series, 100 / pages), css(color), { dashed: name.endsWith("pinned"), band: true });
          p.marks(marks);
        },
        hover: (p, x) => [at(x), ...parts.map(([name, series, pages]) => {
          const [mean, low, top] = valueAt(series, x);
          return `${name}: ${extent(mean, low, top)} of ${pages} pages (${trim((100 * mean) / pages, 3)} %)`;
        }), ...(worker.stored ? [`L3: ${extent(...valueAt(worker.stored, x))} objects known`] : [])].join("\n"),
      });
    } else tiers.append(empty("No page was ever in use."));
    if (running || waiting) {
      const high = Math.max(peak(running), peak(waiting), 1) * 1.1;
      chart(queue, {
        height, left: 44, y: () => [0, high], aria: `requests at worker ${index}`,
        draw(p) {
          p.series(running, css("--c4"), { band: true });
          p.series(waiting, css("--c1"), { band: true });
          p.marks(marks);
        },
        hover: (p, x) => `${at(x)}\nwaiting: ${extent(...valueAt(waiting, x))}\nrunning: ${extent(...valueAt(running, x))}`,
      });
    } else queue.append(empty("No request came here."));
    if (busy) {
      chart(gpu, {
        height, left: 44, y: () => [0, 105], unitY: (tick) => trim(tick, 3), aria: `GPU of worker ${index}`,
        draw(p) {
          p.series(busy, css("--c8"));
          p.marks(marks);
        },
        hover: (p, x) => `${at(x)}\nGPU busy: ${trim(valueAt(busy, x)[0], 3)} %${busy.hi ? ` (mean of ${span(busy.w)})` : ""}`,
      });
    } else gpu.append(empty("No forward ran here."));
  });
  const stores = data.workers.map((worker, index) => [index, worker.stored]).filter(([, stored]) => stored);
  if (!data.workers.some((worker) => worker.store !== null)) return;
  main.append(el("h3", {}, "L3: objects (pages) that each worker knows of"));
  if (!stores.length) return void main.append(empty("Nothing was ever stored in L3."));
  const color = (index) => `--c${index % 10}`;
  main.append(legend(...stores.map(([index]) => [`worker ${index}`, color(index), 1])));
  const high = Math.max(...stores.map(([, stored]) => peak(stored))) * 1.08;
  chart(main.appendChild(el("div")), {
    height: 130, y: () => [0, high], aria: "objects in L3",
    draw(p) {
      for (const [index, stored] of stores) p.series(stored, css(color(index)));
      p.marks(data.marks, true);
    },
    hover: (p, x) => [at(x), ...stores.map(([index, stored]) => `worker ${index}: ${extent(...valueAt(stored, x))}`)].join("\n"),
  });
}

const at = (x) => point(x, view.to - view.from);
const extent = (mean, low, high) => (low === high ? trim(mean, 6) : `${trim(mean, 4)} (${low} to ${high})`);
function scaled(series, factor) {
  if (!series) return null;
  const key = `scaled${factor}`;
  const times = (column) => column?.map((value) => value * factor);
  return (series[key] ??= { ...series, v: times(series.v), lo: times(series.lo), hi: times(series.hi), l: times(series.l) });
}

function transfers() {
  section("Transfers", "What each link carried over time (means over the width of a line; zoom in for bursts), those that carried most first; then the moves of pages themselves.");
  if (!data.links.length) main.append(empty("No link carried anything in this run."));
  const shown = data.links.slice(0, 12);
  const grid = el("div", { class: "grid" });
  main.append(grid);
  const draw = (list, into) => list.forEach((link) => {
    unpack(link.rate);
    const box = into.appendChild(el("div", {}, el("h3", {}, `${link.name}: ${trim(link.bytes, 4)} GB carried, ${trim(link.capacity, 4)} GB/s at most`)));
    const rate = scaled(link.rate, 1e-3);
    const high = (p) => p.columns(rate).reduce((most, value) => Math.max(most, value?.[0] ?? 0), 0);
    chart(box, {
      height: 100, y: (p) => [0, (high(p) || link.capacity) * 1.12], unitY: (tick) => `${trim(tick, 3)} GB/s`, left: 70, aria: `throughput of ${link.name}`,
      draw(p) {
        p.series(rate, css("--c0"));
        p.marks(data.marks);
      },
      hover: (p, x) => {
        const [mean, low, top] = valueAt(rate, x);
        return `${at(x)}\n${trim(mean, 4)} GB/s${low === top ? "" : ` (${trim(low, 4)} to ${trim(top, 4)})`}`;
      },
    });
  });
  draw(shown, grid);
  if (data.links.length > shown.length) {
    const more = el("div", { class: "grid" });
    const details = el("details", {}, el("summary", {}, `${data.links.length - shown.length} more links`), more);
    main.append(details);
    draw(data.links.slice(shown.length), more);
    details.addEventListener("toggle", drawAll);
  }
  moves();
}

function moves() {
  const { count, rows } = data.moves;
  main.append(el("h3", {}, "Moves of pages"));
  if (!rows.length) return void main.append(empty("No page was copied, pushed, read from L3 or written to it."));
  const kinds = [["push", "--hand-off"], ["load back", "--c8"], ["backup", "--c5"], ["prefetch", "--prefetch"], ["persist", "--c6"]];
  const present = kinds.filter(([kind]) => rows.some(([other]) => other === kind));
  if (count > rows.length) main.append(el("p", { class: "soft" }, `Of ${count} moves the longest ${rows.length} are here, up to 1000 of each kind.`));
  main.append(legend(...present));
  const lanes = [];
  data.workers.forEach((_, worker) => present.forEach(([kind, color]) => {
    const list = rows.filter((row) => row[1] === worker && row[0] === kind);
    if (list.length) lanes.push({ worker, kind, color, list });
  }));
  const height = 18;
  const visible = Math.min(lanes.length * height + 34, 420);
  const box = main.appendChild(el("div", { class: "scroll" }));
  box.style.height = `${visible}px`;
  const plot = chart(box, {
    height: visible - 2, left: 130, aria: "moves of pages over time",
    draw(p) {
      const { c } = p;
      c.restore();
      c.save();
      lanes.forEach(({ worker, kind, color, list }, index) => {
        const y = p.top + index * height - box.scrollTop;
        if (y < -height || y > p.height - p.bottom - height + 4) return;
        c.fillStyle = css("--soft");
        c.textBaseline = "middle";
        c.fillText(`worker ${worker} ${kind}`, 4, y + height / 2);
        c.fillStyle = css(color);
        c.globalAlpha = 0.75;
        for (const [, , , from, length] of list) {
          const [left, right] = [p.x(from), p.x(from + length)];
          if (right < p.left || left > p.width - p.right) continue;
          const x = Math.max(left, p.left);
          c.fillRect(x, y + 3, Math.max(1, Math.min(right, p.width - p.right) - x), height - 6);
        }
        c.globalAlpha = 1;
      });
      p.marks(data.marks, true);
    },
    hover(p, x, y) {
      const lane = lanes[Math.floor((y + box.scrollTop - p.top) / height)];
      if (!lane) return "";
      const reach = ((view.to - view.from) / p.width) * 3;
      const found = lane.list.filter(([, , , from, length]) => from - reach <= x && x <= from + length + reach);
      const text = ([kind, , to, from, length, size, request, ending]) =>
        `${at(from)}, ${span(length)}: ${kind} of ${bytes(size)}${to === null ? "" : ` to worker ${to}`}` +
        `${request === null ? "" : ` for request ${request}`}, ${trim(size / length / 1e9, 3)} GB/s${ending ? `, ${ending}` : ""}`;
      const more = found.length > 6 ? [`and ${found.length - 6} more`] : [];
      if (!found.length) return `worker ${lane.worker}, ${lane.kind}: none at ${at(x)}`;
      return [`worker ${lane.worker}, ${lane.kind}`, ...found.slice(0, 6).map(text), ...more].join("\n");
    },
  });
  const spacer = el("div");
  spacer.style.height = `${Math.max(0, lanes.length * height + 34 - visible)}px`;
  box.append(spacer);
  box.addEventListener("scroll", () => plot.draw());
}

function slowest() {
  section("Slowest requests", "By the time to their first token, or to their end if they never got one. The longest phase before it is the reason.");
  const rows = data.requests.rows.filter((row) => row[12]).slice(0, 25);
  if (!rows.length) return void main.append(empty("No request arrived in this run."));
  main.append(table(["request", "longest phase", "not cached, because", "arrived, s", "TTFT, ms", "E2E, ms", "prompt", "L1 / L2 / L3", "answer", "end"],
    rows.map((row) => {
      const [index, arrival, , ttft, e2e, prompt, tiers, tokens, end, , , misses] = row;
      const times = phaseTimes(row);
      const before = ttft === null ? times : times.slice(0, -1);
      const longest = before.indexOf(Math.max(...before));
      const total = before.reduce((sum, time) => sum + time, 0);
      const reason = total > 0 ? `${data.phases[longest]} ${span(before[longest])} (${Math.round((100 * before[longest]) / total)} %)` : "none";
      const ms = (value) => (value === null ? "none" : value.toFixed(1));
      return [String(index), reason, misses || "all cached", arrival.toFixed(3), ms(ttft), ms(e2e), String(prompt), tiers.join(" / "), String(tokens), end || "whole"];
    }), 3));
}
