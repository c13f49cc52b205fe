// The console: asks the API every second while somebody looks, and draws what it said.

import { ApiError, Series, get, items, keepToken, post, takeToken } from "./api.js";
import { sampleAt, tideChart } from "./chart.js";
import { h, patch } from "./dom.js";
import { cores, duration } from "./format.js";
import { jobPanel } from "./panel.js";
import { planCard } from "./plan.js";
import { eventsTable, header, jobsTable, machinesTable, readout, servicesTable, teamsTable } from "./views.js";

const EVERY_MS = 1000;
const HIDDEN_MS = 15000;
const MAX_BACKOFF_MS = 8000;
const DETAILS_EVERY = 3; // reasons and logs are asked for less often than numbers
const WINDOWS = { "2m": 120, "10m": 600, "1h": 3600 };

const app = document.getElementById("app");
const state = {
  token: takeToken(),
  refused: false,
  known: {},
  series: new Series(WINDOWS["2m"]),
  lastSeenMs: 0,
  failures: 0,
  trouble: "",
  cursorS: null,
  chartWidth: 0,
  panel: null,
  plan: {},
  openedBy: null,
};
let timer = 0;
let polling = false;
let round = 0;

// ----------------------------------------------------------------------------------- polling

async function poll() {
  clearTimeout(timer);
  if (!state.token || polling) return;
  polling = true;
  try {
    await ask();
    [state.failures, state.trouble, state.lastSeenMs] = [0, "", Date.now()];
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) forgetToken();
    else [state.failures, state.trouble] = [state.failures + 1, error instanceof ApiError ? error.message : ""];
  }
  polling = false;
  render();
  if (state.token) timer = setTimeout(poll, pauseMs());
}

function pauseMs() {
  if (document.hidden) return HIDDEN_MS;
  return state.failures ? Math.min(MAX_BACKOFF_MS, EVERY_MS * 2 ** (state.failures - 1)) : EVERY_MS;
}

async function ask() {
  const { token } = state;
  const [cell, machines, jobs, events, teams] = await Promise.all([
    get(token, "/v1/cell"),
    items(token, "/v1/machines"),
    items(token, "/v1/jobs?all=1"),
    items(token, "/v1/events?limit=100"),
    items(token, "/v1/quota"),
    state.series.update(token),
  ]);
  state.known = { cell, machines, jobs, events, teams };
  if (state.panel) await askDetails(state.panel);
  round += 1;
}

async function askDetails(panel) {
  const path = `/v1/jobs/${encodeURIComponent(panel.uid)}`;
  try {
    panel.job = await get(state.token, path);
    if (panel.why !== undefined && round % DETAILS_EVERY) return;
    [panel.why, panel.logs] = await Promise.all([get(state.token, `${path}/why`), get(state.token, `${path}/logs?tail=200`)]);
    panel.error = "";
  } catch (error) {
    if (!(error instanceof ApiError) || error.status === 401) throw error;
    panel.error = error.message;
  }
}

// ----------------------------------------------------------------------------------- actions

function forgetToken() {
  keepToken("");
  [state.token, state.refused] = ["", true];
}

function enterToken(event) {
  event.preventDefault();
  state.token = new FormData(event.target).get("token").trim();
  keepToken(state.token);
  poll();
}

function openPanel(uid) {
  state.openedBy = document.activeElement;
  state.panel = { uid };
  render();
  document.getElementById("panel-title").focus();
  poll();
}

function closePanel() {
  state.panel = null;
  render();
  if (state.openedBy?.isConnected) state.openedBy.focus();
}

async function askPlan(event) {
  event.preventDefault();
  const spec = new FormData(event.target).get("spec");
  state.plan = { asking: true };
  render();
  try {
    state.plan = { view: await post(state.token, "/v1/plan", spec, "application/yaml") };
  } catch (error) {
    state.plan = { error: error instanceof ApiError ? error.message : "The control plane does not answer." };
  }
  render();
}

function chooseWindow(windowS) {
  [state.series, state.cursorS] = [new Series(windowS), null];
  poll();
}

function moveCursor(event) {
  const box = event.currentTarget.getBoundingClientRect();
  const { samples, windowS } = state.series;
  state.cursorS = sampleAt(samples, windowS, box.width, event.clientX - box.left)?.at_s ?? null;
  render();
}

function keyCursor(event) {
  const { samples } = state.series;
  const at = cursorIndex();
  const jump = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -samples.length, End: samples.length }[event.key];
  if (event.key === "Escape") state.cursorS = null;
  else if (jump !== undefined) state.cursorS = samples[Math.max(0, Math.min(samples.length - 1, at + jump))].at_s;
  else return;
  event.preventDefault();
  event.stopPropagation();
  render();
}

function cursorIndex() {
  const { samples } = state.series;
  const at = samples.findIndex((s) => s.at_s >= state.cursorS);
  return state.cursorS === null || at < 0 ? samples.length - 1 : at;
}

// ------------------------------------------------------------------------------------- page

function tokenForm() {
  return h("main", { key: "token", class: "token card" }, [
    h("h1", {}, "tide", h("span", {}, "cell")),
    state.refused && h("p", { class: "note bad", role: "alert" }, "The cell refused this token. It may be of another cell."),
    h("p", {}, "This console needs the cell's token. Print it with ", h("code", {}, "tide token"), "."),
    h("form", { onsubmit: enterToken }, [
      h("label", { for: "token" }, "Token"),
      h("input", { id: "token", name: "token", type: "password", autocomplete: "off", required: true }),
      h("button", { type: "submit" }, "Open the console"),
    ]),
  ]);
}

function banner() {
  if (!state.failures) return null;
  // The age changes every second; only the rest is worth reading out.
  const ago = state.lastSeenMs > 0 && `Last seen ${duration((Date.now() - state.lastSeenMs) / 1000)} ago. `;
  const seen = h("span", { "aria-live": "off" }, ago);
  const silent = ["The control plane does not answer. ", seen, "Tasks and the router go on; it finds them again when it is back. Start it with ", h("code", {}, "tide up"), "."];
  const trouble = ["The control plane is in trouble. ", seen, state.trouble];
  return h("p", { key: "banner", class: "banner", role: "alert", "aria-atomic": "false" }, h("strong", {}, "⚠ "), state.trouble ? trouble : silent);
}

function tide() {
  const { samples, windowS } = state.series;
  const sample = samples[cursorIndex()];
  const choices = Object.entries(WINDOWS).map(([name, s]) =>
    h("button", { type: "button", "aria-pressed": String(s === windowS), onclick: () => chooseWindow(s) }, name),
  );
  return h("section", { key: "tide", class: "card tide", "aria-label": "Tide chart" }, [
    h("div", { class: "card-head" }, h("h2", {}, "The tide"), h("div", { class: "windows", role: "group", "aria-label": "Time shown" }, choices)),
    h("div", { class: "tide-body" }, [
      h("div", chartProps(sample), sample && state.chartWidth > 0 && tideChart({ samples, windowS, width: state.chartWidth, cursor: state.cursorS === null ? null : sample })),
      sample ? readout(samples, sample, when()) : h("p", { class: "none" }, "No samples yet: there is one a second."),
    ]),
  ]);
}

function when() {
  if (state.cursorS !== null) return "at the cursor";
  return state.failures ? "when last seen" : "now";
}

function chartProps(sample) {
  const { samples } = state.series;
  return {
    id: "chart",
    class: "chart",
    role: "slider",
    tabindex: "0",
    "aria-label": "Time cursor of the tide chart",
    "aria-valuemin": 0,
    "aria-valuemax": Math.max(0, samples.length - 1),
    "aria-valuenow": Math.max(0, cursorIndex()),
    "aria-valuetext": sample ? inWords(sample) : "no samples yet",
    onpointermove: moveCursor,
    onpointerdown: moveCursor,
    onpointerleave: clearCursor,
    onkeydown: keyCursor,
  };
}

function clearCursor() {
  state.cursorS = null;
  render();
}

function inWords(sample) {
  const bands = Object.entries(sample.reserved_by_band ?? {}).map(([band, millis]) => `${band} ${cores(millis)}`);
  return `${new Date(sample.at_s * 1000).toLocaleTimeString("en-GB")}: ${bands.join(", ") || "nothing reserved"} of ${cores(sample.capacity_cpu_millis)} cores`;
}

function page() {
  const { known, series } = state;
  const nowS = Date.now() / 1000;
  const newest = series.samples.at(-1);
  return [
    header(known, nowS, state.failures > 0),
    banner(),
    known.cell?.repair && h("p", { key: "repair", class: "banner", role: "status" }, `The journal was repaired: ${known.cell.repair}`),
    h("main", { key: "main", class: state.failures ? "stale" : "" }, [
      tide(),
      h("div", { key: "tables", class: "tables" }, [
        h("div", { key: "work", class: "column" }, servicesTable(known, newest, openPanel), jobsTable(known, newest, openPanel, nowS), planCard(state.plan, askPlan)),
        h("div", { key: "cell", class: "column" }, machinesTable(known), teamsTable(known), eventsTable(known)),
      ]),
    ]),
    state.panel && jobPanel(state.panel, closePanel, nowS),
  ];
}

function render() {
  patch(app, h("div", {}, state.token ? page() : tokenForm()).children);
  if (!state.token && document.activeElement === document.body) document.getElementById("token").focus();
  const chart = document.getElementById("chart");
  if (chart && chart !== watched) {
    watched = chart;
    resizes.observe(chart);
  }
}

let watched = null;
const resizes = new ResizeObserver(([entry]) => {
  const width = Math.round(entry.contentRect.width);
  if (width === state.chartWidth) return;
  state.chartWidth = width;
  render();
});

document.addEventListener("visibilitychange", () => document.hidden || poll());
document.addEventListener("keydown", (event) => event.key === "Escape" && state.panel && closePanel());
// A link with another token may be opened in a tab that shows the console already.
window.addEventListener("hashchange", () => {
  state.token = takeToken();
  poll();
});
// Ages go on counting while the control plane is silent.
setInterval(() => state.failures && render(), 1000);
render();
poll();
