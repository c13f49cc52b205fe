// The page about usage: who held how much over time, stacked, and what it cost; the same rows as `tide usage`.

import { card, choice, command, filters, head, num, plainTable, sub } from "./ui.js";
import { h } from "./dom.js";
import { clock, day, fine, number } from "./format.js";
import { MEASURES, groupsOf, stepsOf, stackedBars, totalsOf } from "./usage_chart.js";

// How far back, in steps of how long, and what `tide usage` calls the two.
const WINDOWS = {
  "10m": [600, 30, "30s"],
  "1h": [3600, 60, "1m"],
  "24h": [86400, 3600, "1h"],
  "7d": [604800, 21600, "6h"],
  "30d": [2592000, 86400, "1d"],
};
const GROUPS = [["team", "team"], ["band", "band"], ["job", "job"], ["user", "user"], ["team,band", "team and band"]];

const chosen = (params) => ({ window: params.window in WINDOWS ? params.window : "24h", by: GROUPS.some(([g]) => g === params.by) ? params.by : "team", measure: params.measure in MEASURES ? params.measure : "cpu" });

export const usage = {
  name: "usage",
  title: "Usage",
  api: "/v1/usage?by=team&since=&every=",
  cli: "tide usage --by team --since 24h --every 1h",
  every: 30000,
  still: 60000,
  async load({ get }, { params }) {
    const { window, by } = chosen(params);
    const [windowS, everyS] = WINDOWS[window];
    // From the beginning of a step on, so that the first bar is whole.
    const sinceS = Math.floor((Date.now() / 1000 - windowS) / everyS) * everyS;
    const view = await get(`/v1/usage?by=${by}&since=${sinceS}&every=${everyS}`, 30000);
    return { ...view, rows: view.rows ?? [], everyS, by, window };
  },
  view(data, ctx) {
    const { window, by, measure } = chosen(ctx.params);
    const asked = data.window === window && data.by === by;
    const before = filters("What to show", [
      choice("window", "Time", Object.keys(WINDOWS).map((w) => [w, `last ${w}, by ${WINDOWS[w][2]}`]), window),
      choice("by", "By", GROUPS, by),
      choice("measure", "Show", Object.entries(MEASURES).map(([name, m]) => [name, m.title]), measure),
    ], ctx);
    return [
      card("Usage over time", [before, asked ? chart(data, measure, ctx) : h("p", { class: "none" }, "Adding it up …")]),
      asked && totals(data, ctx),
    ];
  },
};

function chart(data, measure, ctx) {
  if (!data.rows.length) return h("p", { class: "none" }, "Nothing was held in that time. Choose a longer one, or start something: tide run -- echo hello");
  const m = MEASURES[measure];
  if (!data.rows.some((r) => m.value(r) > 0)) return h("p", { class: "none" }, m.none);
  const groups = groupsOf(data.rows, data.by.split(","), m);
  const steps = stepsOf(data, groups);
  const at = Math.min(ctx.local.step ?? steps.length - 1, steps.length - 1);
  const step = steps[at];
  const move = (to) => {
    ctx.local.step = Math.max(0, Math.min(steps.length - 1, to));
    ctx.render();
  };
  const pointed = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    move(Math.floor(((event.clientX - box.left - 50) / (box.width - 54)) * steps.length));
  };
  const key = (event) => {
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - 10, PageDown: at + 10, Home: 0, End: steps.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    move(to);
  };
  const when = `${day(step.at_s)} ${clock(step.at_s, data.everyS < 60)}`;
  const said = groups.map((g) => `${g.name} ${fine(step.values.get(g.name))}`).join(", ");
  return h("div", { class: "usage-body" }, [
    h("div", { id: "usage-chart", class: "usage-chart", role: "slider", tabindex: "0", "aria-label": "Step of the usage chart", "aria-valuemin": 0, "aria-valuemax": steps.length - 1, "aria-valuenow": at, "aria-valuetext": `${when}: ${said}`, onpointermove: pointed, onpointerdown: pointed, onkeydown: key },
      ctx.width > 0 && stackedBars({ steps, groups, measure: m, at, width: ctx.width, everyS: data.everyS })),
    h("div", { class: "readout" }, [
      h("p", { class: "when" }, h("strong", {}, when), ` ${m.title}${unit(m, data)}`),
      h("dl", {}, [
        groups.map((g) => h("div", { key: g.name }, h("dt", {}, h("span", { class: `swatch cat-${g.color}`, "aria-hidden": "true" }), g.name), h("dd", {}, fine(step.values.get(g.name))))),
        m.lines && [
          h("div", { key: "/asked" }, h("dt", {}, h("span", { class: "swatch limit", "aria-hidden": "true" }), "all asked for"), h("dd", {}, fine(step.requested))),
          h("div", { key: "/used" }, h("dt", {}, h("span", { class: "swatch used", "aria-hidden": "true" }), "all really used"), h("dd", {}, fine(step.used))),
        ],
      ]),
    ]),
  ]);
}

const unit = (m, data) => (m.unit === "cost" ? `, ${data.currency || "no currency"}` : `, ${m.unit}`);

function totals(data, ctx) {
  const names = data.by.split(",");
  const rows = totalsOf(data.rows, names).map((r) =>
    h("tr", { key: r.key }, [
      head(r.name),
      num(fine(r.requested)),
      num(fine(r.cpu)),
      num(fine(r.used), r.cpu > 0 && sub(`${Math.round((100 * r.used) / r.cpu)} %`)),
      num(fine(r.gpu), r.requestedGpu > 0 && sub(`of ${fine(r.requestedGpu)} asked for`), r.gpu > 0 && sub(r.gpuText)),
      num(fine(r.memory)),
      num(fine(r.waited)),
      num(`${number(r.starts)} / ${number(r.preemptions)}`),
      num(r.cost ? `${fine(r.cost)} ${data.currency ?? ""}` : "–"),
    ]),
  );
  const heads = [names.join(", "), ">Asked cpu-h", ">Reserved cpu-h", ">Used cpu-h", ">gpu-h", ">GiB-h", ">Waited h", ">Starts / preempted", ">Cost"];
  const typed = `tide usage --by ${data.by} --since ${data.window} --every ${WINDOWS[data.window][2]}`;
  const more = h("div", { class: "foot" }, [h("p", { class: "sub" }, "The same rows as JSON, CSV or a picture:"), command(typed, ctx), command(`${typed} --csv`, ctx), command(`${typed} --plot usage.png`, ctx)]);
  return card("Totals", [rows.length ? plainTable("Totals", heads, rows) : h("p", { class: "none" }, "Nothing was held in that time."), more]);
}
