// The first page: the tide, and the newest of everything.

import { sampleAt, tideChart } from "./chart.js";
import { h } from "./dom.js";
import { cores } from "./format.js";
import { machinesTable, eventsTable, teamsTable } from "./page_cell.js";
import { jobsTable, servicesTable } from "./page_work.js";
import { readout } from "./readout.js";

export const WINDOWS = { "2m": 120, "10m": 600, "1h": 3600 };
const NUM_JOBS = 20;

export const overview = {
  name: "overview",
  title: "Overview",
  api: "/v1/cell, /v1/series, /v1/jobs, /v1/machines, /v1/quota, /v1/events",
  cli: "tide status, tide chart, tide ps, tide machines",
  every: 1000,
  still: 1000,
  async load({ get, items, loadSeries }, { local }) {
    // The chart moves every second; tables are asked for half as often.
    local.turn = (local.turn ?? 1) + 1;
    if (local.turn % 2 && local.known) {
      await loadSeries();
      return local.known;
    }
    const [jobs, services, machines, teams, events] = await Promise.all([
      get(`/v1/jobs?state=any&limit=${NUM_JOBS}&brief=1`),
      items("/v1/jobs?kind=service&brief=1"),
      items("/v1/machines"),
      items("/v1/quota"),
      items("/v1/events?limit=30"),
      loadSeries(),
    ]);
    local.known = { jobs, services, machines, teams, events };
    return local.known;
  },
  view({ jobs, services, machines, teams, events }, ctx) {
    const more = jobs.total > NUM_JOBS && h("p", {}, h("a", { href: "#/jobs" }, `All ${jobs.total} jobs`));
    return [
      tide(ctx),
      h("div", { key: "tables", class: "tables" }, [
        h("div", { key: "work", class: "column" }, servicesTable(services, ctx.newest, ctx), jobsTable(jobs, ctx.newest, ctx, { more })),
        h("div", { key: "cell", class: "column" }, machinesTable(machines), teamsTable(teams), eventsTable(events, "Recent events", ctx)),
      ]),
    ];
  },
};

// ----------------------------------------------------------------------------------- the tide

function tide(ctx) {
  const { samples, windowS } = ctx.series;
  const sample = samples[cursorIndex(ctx)];
  const choices = Object.entries(WINDOWS).map(([name, s]) =>
    h("button", { type: "button", "aria-pressed": String(s === windowS), onclick: () => ctx.chooseWindow(s) }, name),
  );
  const cursor = ctx.cursor.s === null ? null : sample;
  return h("section", { key: "tide", class: "card tide", "aria-label": "Tide chart" }, [
    h("div", { class: "card-head" }, h("h2", {}, "The tide"), h("div", { class: "windows", role: "group", "aria-label": "Time shown" }, choices)),
    h("div", { class: "tide-body" }, [
      h("div", chartProps(sample, ctx), sample && ctx.width > 0 && tideChart({ samples, windowS, width: ctx.width, cursor })),
      sample ? readout(samples, sample, when(ctx)) : h("p", { class: "none" }, "No samples yet: there is one a second."),
    ]),
  ]);
}

function when(ctx) {
  if (ctx.cursor.s !== null) return "at the cursor";
  return ctx.silent ? "when last seen" : "now";
}

function cursorIndex(ctx) {
  const { samples } = ctx.series;
  const at = samples.findIndex((s) => s.at_s >= ctx.cursor.s);
  return ctx.cursor.s === null || at < 0 ? samples.length - 1 : at;
}

function chartProps(sample, ctx) {
  const { samples, windowS } = ctx.series;
  const set = (s) => {
    ctx.cursor.s = s;
    ctx.render();
  };
  const pointed = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    set(sampleAt(samples, windowS, box.width, event.clientX - box.left)?.at_s ?? null);
  };
  return {
    id: "chart",
    class: "chart",
    role: "slider",
    tabindex: "0",
    "aria-label": "Time cursor of the tide chart",
    "aria-valuemin": 0,
    "aria-valuemax": Math.max(0, samples.length - 1),
    "aria-valuenow": Math.max(0, cursorIndex(ctx)),
    "aria-valuetext": sample ? inWords(sample) : "no samples yet",
    onpointermove: pointed,
    onpointerdown: pointed,
    onpointerleave: () => set(null),
    onkeydown: (event) => keyed(event, ctx, set),
  };
}

function keyed(event, ctx, set) {
  const { samples } = ctx.series;
  const at = cursorIndex(ctx);
  const jump = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -samples.length, End: samples.length }[event.key];
  if (event.key !== "Escape" && (jump === undefined || !samples.length)) return;
  event.preventDefault();
  event.stopPropagation();
  set(event.key === "Escape" ? null : samples[Math.max(0, Math.min(samples.length - 1, at + jump))].at_s);
}

function inWords(sample) {
  const bands = Object.entries(sample.reserved_by_band ?? {}).map(([band, millis]) => `${band} ${cores(millis)}`);
  return `${new Date(sample.at_s * 1000).toLocaleTimeString("en-GB")}: ${bands.join(", ") || "nothing reserved"} of ${cores(sample.capacity_cpu_millis)} cores`;
}
