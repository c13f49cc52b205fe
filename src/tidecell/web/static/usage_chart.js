// Usage as stacked bars, one for each step of time; the numbers are those of /v1/usage. SVG.

import { h } from "./dom.js";
import { clock, day, fine, number } from "./format.js";
import { ticks } from "./chart.js";

const LEFT = 50;
const RIGHT = 4;
const HEIGHT = 260;
const TOP = 10;
const AXIS = 26;
const NUM_GROUPS = 7; // colours; what is smaller goes into "others"
const OTHERS = 7;

const gpuHours = (r) => Object.values(r.gpu_hours ?? {}).reduce((sum, hours) => sum + hours, 0);

// What may be shown, and how it is read off a row.
export const MEASURES = {
  cpu: { title: "reserved cores", unit: "cpu-hours", value: (r) => r.cpu_hours ?? 0, lines: true, none: "No core was reserved in that time." },
  requested: { title: "requested cores", unit: "cpu-hours", value: (r) => r.requested_cpu_hours ?? 0, none: "No core was asked for in that time." },
  used: { title: "used cores", unit: "cpu-hours", value: (r) => r.used_cpu_hours ?? 0, none: "Nothing was measured in that time." },
  gpu: { title: "reserved accelerators", unit: "gpu-hours", value: gpuHours, none: "No accelerator was held in that time." },
  "requested-gpu": { title: "requested accelerators", unit: "gpu-hours", value: (r) => r.requested_gpu_hours ?? 0, none: "No accelerator was asked for in that time." },
  memory: { title: "reserved memory", unit: "GiB-hours", value: (r) => r.memory_gib_hours ?? 0, none: "No memory was reserved in that time." },
  waited: { title: "waiting", unit: "hours", value: (r) => r.waited_hours ?? 0, none: "Nothing waited in that time." },
  cost: { title: "cost", unit: "cost", value: (r) => r.cost ?? 0, none: "Nothing cost anything: no prices are set. They stand in the file of tide quota apply." },
};

export const nameOf = (row, by) => by.map((part) => row[part] || (part === "team" ? "no team" : part === "user" ? "nobody" : "–")).join(" · ");

// The largest groups in a fixed order, so that a colour keeps its meaning from bar to bar.
export function groupsOf(rows, by, measure) {
  const sums = new Map();
  for (const row of rows) sums.set(nameOf(row, by), (sums.get(nameOf(row, by)) ?? 0) + measure.value(row));
  const ranked = [...sums].filter(([, sum]) => sum > 0).sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
  const group = (name, color, names) => ({ name, color, read: (row) => (names.has(nameOf(row, by)) ? measure.value(row) : 0) });
  const shown = ranked.slice(0, NUM_GROUPS).map(([name], color) => group(name, color, new Set([name])));
  const rest = new Set(ranked.slice(NUM_GROUPS).map(([name]) => name));
  return rest.size ? [...shown, group(`${number(rest.size)} others`, OTHERS, rest)] : shown;
}

// Every step of the time, those in which nothing was held included.
export function stepsOf({ rows, since_s, until_s, everyS }, groups) {
  const first = Math.floor(since_s / everyS);
  const last = Math.max(first, Math.ceil(until_s / everyS) - 1);
  const steps = Array.from({ length: last - first + 1 }, (_, i) => ({ at_s: (first + i) * everyS, rows: [], requested: 0, used: 0 }));
  for (const row of rows) {
    const step = steps[Math.round((row.at_s ?? 0) / everyS) - first];
    if (!step) continue;
    step.rows.push(row);
    step.requested += row.requested_cpu_hours ?? 0;
    step.used += row.used_cpu_hours ?? 0;
  }
  for (const step of steps) step.values = new Map(groups.map((g) => [g.name, step.rows.reduce((sum, row) => sum + g.read(row), 0)]));
  return steps;
}

export function totalsOf(rows, by) {
  const found = new Map();
  for (const row of rows) {
    const name = nameOf(row, by);
    const sum = found.get(name) ?? { key: name, name, requested: 0, cpu: 0, used: 0, gpu: 0, requestedGpu: 0, types: {}, memory: 0, waited: 0, starts: 0, preemptions: 0, cost: 0 };
    found.set(name, sum);
    sum.requested += row.requested_cpu_hours ?? 0;
    sum.cpu += row.cpu_hours ?? 0;
    sum.used += row.used_cpu_hours ?? 0;
    sum.gpu += gpuHours(row);
    sum.requestedGpu += row.requested_gpu_hours ?? 0;
    for (const [kind, hours] of Object.entries(row.gpu_hours ?? {})) sum.types[kind] = (sum.types[kind] ?? 0) + hours;
    sum.memory += row.memory_gib_hours ?? 0;
    sum.waited += row.waited_hours ?? 0;
    sum.starts += row.starts ?? 0;
    sum.preemptions += row.preemptions ?? 0;
    sum.cost += row.cost ?? 0;
    sum.gpuText = Object.entries(sum.types).map(([kind, hours]) => `${fine(hours)} ${kind || "any"}`).join(", ");
  }
  return [...found.values()].sort((a, b) => b.cost - a.cost || b.gpu - a.gpu || b.cpu - a.cpu || (a.name < b.name ? -1 : 1));
}

// Return the chart as one SVG; the step `at` is marked.
export function stackedBars({ steps, groups, measure, at, width, everyS }) {
  const stack = (step) => [...step.values.values()].reduce((sum, value) => sum + value, 0);
  const most = 1.08 * Math.max(1e-9, ...steps.map((s) => Math.max(stack(s), measure.lines ? Math.max(s.requested, s.used) : 0)));
  const room = (width - LEFT - RIGHT) / steps.length;
  const gap = room > 6 ? 1 : 0;
  const x = (i) => LEFT + i * room;
  const y = (value) => TOP + HEIGHT * (1 - value / most);
  const marks = ticks(most, 5);
  return h("svg", { viewBox: `0 0 ${width} ${TOP + HEIGHT + AXIS}`, width, height: TOP + HEIGHT + AXIS, "aria-hidden": "true" }, [
    h("rect", { key: "at", class: "step-at", x: x(at).toFixed(1), y: TOP, width: Math.max(1, room).toFixed(1), height: HEIGHT }),
    marks.map((v) => [
      h("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(v), y2: y(v) }),
      h("text", { class: "tick", x: LEFT - 6, y: y(v) + 4, "text-anchor": "end" }, fine(v)),
    ]),
    groups.map((group, n) =>
      h("path", { key: `bars-${n}`, class: `cat-${group.color}`, "data-group": group.name, d: bars(steps, groups.slice(0, n), group, x, y, room - gap) })),
    measure.lines && h("path", { key: "asked", class: "limit", d: stairs(steps, (s) => s.requested, x, y, room) }),
    measure.lines && h("path", { key: "used", class: "used", d: stairs(steps, (s) => s.used, x, y, room) }),
    h("line", { class: "base", x1: LEFT, x2: width - RIGHT, y1: TOP + HEIGHT, y2: TOP + HEIGHT }),
    labels(steps, room).map((i) => h("text", { class: "tick", x: x(i) + room / 2, y: TOP + HEIGHT + 16, "text-anchor": "middle" }, everyS >= 21600 ? day(steps[i].at_s).slice(5) : clock(steps[i].at_s, everyS < 60))),
  ]);
}

function bars(steps, below, group, x, y, width) {
  return steps.map((step, i) => {
    const value = step.values.get(group.name);
    if (!value) return "";
    const base = below.reduce((sum, g) => sum + step.values.get(g.name), 0);
    return `M${x(i).toFixed(1)} ${y(base).toFixed(1)}h${width.toFixed(1)}V${y(base + value).toFixed(1)}h${(-width).toFixed(1)}Z`;
  }).join("");
}

const stairs = (steps, value, x, y, room) =>
  steps.map((s, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(value(s)).toFixed(1)}h${room.toFixed(1)}`).join("");

// Which steps get a label, so that they do not touch.
function labels(steps, room) {
  const every = Math.max(1, Math.ceil(64 / room));
  return steps.map((_, i) => i).filter((i) => i % every === Math.floor(every / 2));
}
