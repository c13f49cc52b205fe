// The tide chart: capacity by band, requests, training, one above the other on one time axis. SVG.
//
// Stacked areas are steps (a reservation holds until the next sample); lines break where samples are
// missing, so an outage of the control plane is a gap and never an invented slope.

import { BANDS, clock, milliseconds, number, short } from "./format.js";
import { h } from "./dom.js";

const LEFT = 46;
const RIGHT = 54;
const TITLE = 26;
const PANELS = { capacity: 178, requests: 92, training: 92 };
const AXIS = 24;
const NUM_LINES = 5; // colours for lines, see console.css

// ------------------------------------------------------------------------------------ scales

// Round tick values from 0 up to at most the largest value.
export function ticks(largest, about, whole = false) {
  const rough = largest / about;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  if (whole) step = Math.max(1, Math.ceil(step));
  return Array.from({ length: Math.floor(largest / step + 1e-9) + 1 }, (_, i) => i * step);
}

export function timeTicks(fromS, toS, numLabels) {
  const steps = [5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600];
  const step = steps.find((s) => (toS - fromS) / s <= numLabels) ?? 7200;
  const values = [];
  for (let t = Math.ceil(fromS / step) * step; t <= toS; t += step) values.push(t);
  return values;
}

// ----------------------------------------------------------------------------------- shapes

// Indices of samples in runs without a gap.
function runs(samples, maxGapS) {
  const found = [];
  samples.forEach((s, i) => {
    if (i === 0 || s.at_s - samples[i - 1].at_s > maxGapS) found.push([]);
    found.at(-1).push(i);
  });
  return found;
}

const point = (x, y) => `${x.toFixed(1)} ${y.toFixed(1)}`;

function stepPath(run, x, y) {
  return run.map((i, n) => (n ? `H${x(i).toFixed(1)}V${y(i).toFixed(1)}` : `M${point(x(i), y(i))}`)).join("");
}

function areaPath(run, x, top, bottom) {
  const back = [...run].reverse();
  const down = back.map((i, n) => (n ? `V${bottom(i).toFixed(1)}H${x(i).toFixed(1)}` : "")).join("");
  return `${stepPath(run, x, top)}V${bottom(run.at(-1)).toFixed(1)}${down}Z`;
}

function linePath(run, x, y, value) {
  let pen = "M";
  let path = "";
  for (const i of run) {
    if (value(i) === undefined) {
      pen = "M";
      continue;
    }
    path += `${pen}${point(x(i), y(value(i)))}`;
    pen = "L";
  }
  return path;
}

// Where a name fits into an area: the longest stretch that is at least so high throughout.
function labelPlace(run, x, top, bottom, minHeight) {
  let best = null;
  let from = 0;
  let lowest = -Infinity;
  let highest = Infinity;
  run.forEach((i, n) => {
    lowest = Math.max(lowest, top(i));
    highest = Math.min(highest, bottom(i));
    if (highest - lowest < minHeight) {
      [from, lowest, highest] = [n + 1, -Infinity, Infinity];
      return;
    }
    const width = x(i) - x(run[from]);
    if (!best || width > best.width) best = { width, x: x(run[from]) + width / 2, y: (lowest + highest) / 2 };
  });
  return best;
}

// ----------------------------------------------------------------------------------- panels

function frame(panel, title, unitRight) {
  const { y0, height, right, left } = panel;
  return [
    h("text", { class: "panel-title", x: left, y: y0 - 9 }, title),
    unitRight && h("text", { class: "panel-unit", x: right, y: y0 - 9, "text-anchor": "end" }, unitRight),
    h("line", { class: "base", x1: left, x2: right, y1: y0 + height, y2: y0 + height }),
  ];
}

function grid(panel, values, y, format, side = "left") {
  const { left, right } = panel;
  return values.map((v) => [
    side === "left" && v > 0 && h("line", { class: "grid", x1: left, x2: right, y1: y(v), y2: y(v) }),
    h(
      "text",
      { class: "tick", x: side === "left" ? left - 6 : right + 6, y: y(v) + 4, "text-anchor": side === "left" ? "end" : "start" },
      format(v),
    ),
  ]);
}

const scale = (panel, largest) => (v) => panel.y0 + panel.height * (1 - v / largest);

function capacityPanel(panel, samples, parts, x) {
  const capacity = (s) => (s.capacity_cpu_millis ?? 0) / 1000;
  const reserved = (s, band) => (s.reserved_by_band?.[band] ?? 0) / 1000;
  const sums = samples.map((s) => {
    let sum = 0;
    return Object.fromEntries(BANDS.map((band) => [band, [sum, (sum += reserved(s, band))]]));
  });
  const most = 1.12 * Math.max(0.1, ...samples.map(capacity), ...sums.map((s) => s[BANDS.at(-1)][1]));
  const y = scale(panel, most);
  const areas = BANDS.filter((band) => samples.some((s) => reserved(s, band) > 0)).map((band) => {
    const top = (i) => y(sums[i][band][1]);
    const bottom = (i) => y(sums[i][band][0]);
    const places = parts.map((run) => labelPlace(run, x, top, bottom, 15)).filter(Boolean);
    const place = places.sort((a, b) => b.width - a.width)[0];
    return [
      h("path", { key: `area-${band}`, class: `area band-${band}`, d: parts.map((r) => areaPath(r, x, top, bottom)).join("") }),
      place?.width > band.length * 8 &&
        h("text", { key: `name-${band}`, class: `area-name on-${band}`, x: place.x, y: place.y + 4, "text-anchor": "middle" }, band),
    ];
  });
  const used = (i) => Object.values(samples[i].jobs ?? {}).reduce((sum, j) => sum + (j.used_cpu_millis ?? 0) / 1000, 0);
  return h("g", { key: "capacity", "data-panel": "capacity" }, [
    frame(panel, "Cores reserved, by priority band"),
    grid(panel, ticks(most, 5), y, (v) => number(v, 2)),
    areas,
    h("path", { key: "used", class: "used", d: parts.map((r) => linePath(r, x, y, used)).join("") }),
    h("path", { key: "limit", class: "limit", d: parts.map((r) => stepPath(r, x, (i) => y(capacity(samples[i])))).join("") }),
  ]);
}

// One panel with a solid line on the left scale and a dashed one on the right, per name.
function linesPanel(panel, samples, parts, x, kind) {
  const names = seriesNames(samples, kind.field);
  const read = (name, field) => (i) => {
    const entry = samples[i][kind.field]?.[name];
    return entry === undefined ? undefined : entry[field] ?? 0;
  };
  const most = (field) => Math.max(0, ...samples.flatMap((s) => Object.values(s[kind.field] ?? {}).map((e) => e[field] ?? 0)));
  const left = Math.max(most(kind.left) * 1.15, kind.atLeast);
  const right = kind.steps ? most(kind.right) + 1 : Math.max(most(kind.right) * 1.3, 1);
  const yLeft = scale(panel, left);
  const yRight = scale(panel, right);
  const lines = names.map((name, n) => {
    const rightOf = read(name, kind.right);
    const known = (run) => run.filter((i) => rightOf(i) !== undefined);
    const dashed = kind.steps
      ? parts.map(known).filter((r) => r.length).map((r) => stepPath(r, x, (i) => yRight(rightOf(i))))
      : parts.map((r) => linePath(r, x, yRight, rightOf));
    return [
      h("path", { key: `right-${name}`, class: `line dashed ${kind.field}-${n % NUM_LINES}`, d: dashed.join("") }),
      h("path", {
        key: `left-${name}`,
        class: `line ${kind.field}-${n % NUM_LINES}`,
        d: parts.map((r) => linePath(r, x, yLeft, read(name, kind.left))).join(""),
      }),
    ];
  });
  return h("g", { key: kind.field, "data-panel": kind.field }, [
    frame(panel, kind.titleLeft, kind.titleRight),
    grid(panel, ticks(left, 3), yLeft, short),
    grid(panel, ticks(right, 3, kind.steps), yRight, kind.formatRight, "right"),
    lines,
    names.length === 0 &&
      h("text", { class: "empty", x: (panel.left + panel.right) / 2, y: panel.y0 + panel.height / 2, "text-anchor": "middle" }, kind.empty),
  ]);
}

export const REQUESTS = {
  field: "services",
  left: "rate_per_s",
  right: "latency_ms_p95",
  atLeast: 1,
  titleLeft: "━ Requests/s",
  titleRight: "p95 latency ┅",
  formatRight: (v) => milliseconds(v),
  empty: "no service in this time",
};
export const TRAINING = {
  field: "trainings",
  left: "tokens_per_s",
  right: "world_size",
  atLeast: 100,
  steps: true,
  titleLeft: "━ Training tokens/s",
  titleRight: "workers ┅",
  formatRight: (v) => number(v),
  empty: "no training in this time",
};

export const seriesNames = (samples, field) =>
  [...new Set(samples.flatMap((s) => Object.keys(s[field] ?? {})))].sort();

export const lineClass = (samples, field, name) => `${field}-${seriesNames(samples, field).indexOf(name) % NUM_LINES}`;

// ------------------------------------------------------------------------------------ chart

// Return the chart of `samples` as one SVG, `width` pixels wide; a line marks the cursor if there is one.
export function tideChart({ samples, windowS, width, cursor }) {
  const left = LEFT;
  const right = width - RIGHT;
  const toS = samples.at(-1).at_s;
  const fromS = toS - windowS;
  const toX = (at_s) => left + ((at_s - fromS) / windowS) * (right - left);
  const x = (i) => toX(samples[i].at_s);
  const parts = runs(samples, Math.max(5, (3 * windowS) / 600));
  const panels = {};
  let bottom = 0;
  for (const [name, height] of Object.entries(PANELS)) {
    panels[name] = { y0: bottom + TITLE, height, left, right };
    bottom += TITLE + height + 6;
  }
  const times = timeTicks(fromS, toS, Math.max(3, Math.floor((right - left) / 110)));
  return h("svg", { viewBox: `0 0 ${width} ${bottom + AXIS}`, width, height: bottom + AXIS, "aria-hidden": "true" }, [
    times.map((t) => h("line", { class: "grid", x1: toX(t), x2: toX(t), y1: TITLE, y2: bottom - 6 })),
    capacityPanel(panels.capacity, samples, parts, x),
    linesPanel(panels.requests, samples, parts, x, REQUESTS),
    linesPanel(panels.training, samples, parts, x, TRAINING),
    times.map((t) => h("text", { class: "tick", x: toX(t), y: bottom + 12, "text-anchor": "middle" }, clock(t, windowS <= 120))),
    cursor && h("line", { key: "cursor", class: "cursor", x1: toX(cursor.at_s), x2: toX(cursor.at_s), y1: TITLE, y2: bottom - 6 }),
  ]);
}

// Return the sample nearest to a horizontal position in the chart, or null outside of the plot.
export function sampleAt(samples, windowS, width, px) {
  if (!samples.length || px < LEFT - 4 || px > width - RIGHT + 4) return null;
  const at_s = samples.at(-1).at_s - windowS * (1 - (px - LEFT) / (width - RIGHT - LEFT));
  return samples.reduce((best, s) => (Math.abs(s.at_s - at_s) < Math.abs(best.at_s - at_s) ? s : best));
}
