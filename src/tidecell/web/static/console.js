// The console: asks the API while somebody looks, and draws what it said.
//
// Once a second it asks for the cell alone. A page, and each part of the details, says how often it may be asked
// for at most (`every`), and how often while no event was journaled since the last answer (`still`).

import { actionDialog, firstValues, valuesOf } from "./actions.js";
import { ApiError, Series, get, items, keepToken, send, takeToken } from "./api.js";
import { h, patch } from "./dom.js";
import { allocs, schedules } from "./page_reserved.js";
import { events, machines, teams } from "./page_cell.js";
import { jobs, queue, services, sessions } from "./page_work.js";
import { overview, WINDOWS } from "./page_overview.js";
import { jobPanel, panelParts } from "./panel.js";
import { plan } from "./plan.js";
import { href, readRoute } from "./route.js";
import { banner, header, navigation, source, tokenForm } from "./shell.js";
import { usage } from "./page_usage.js";

const EVERY_MS = 1000;
const MAX_BACKOFF_MS = 8000;
const PATIENT_MS = 30000; // the scheduler may have many things to try for an answer
const PAGES = [overview, queue, jobs, services, sessions, schedules, allocs, machines, teams, usage, events, plan];

const app = document.getElementById("app");
const state = {
  token: takeToken(),
  refused: false,
  cell: null,
  me: null,
  machines: null,
  series: new Series(WINDOWS["2m"]),
  cursor: { s: null },
  lastSeenMs: 0,
  failures: 0,
  trouble: "",
  width: 0,
  route: readRoute(),
  page: null, // { page, slot, local }: what is shown, what it was told, what it keeps for itself
  panel: null, // { uid, slots, parts, openedBy }
  dialog: null,
  copied: "",
};
let timer = 0;
let polling = false;

// ----------------------------------------------------------------------------------- polling

async function poll() {
  clearTimeout(timer);
  if (!state.token || polling || document.hidden) return;
  polling = true;
  await attempt(async () => {
    state.me ??= await get(state.token, "/v1/me");
    state.cell = await get(state.token, "/v1/cell");
    [state.failures, state.trouble, state.lastSeenMs] = [0, "", Date.now()];
  });
  polling = false;
  render();
  if (!state.failures && state.token) refresh();
  if (state.token) timer = setTimeout(poll, pauseMs());
}

// Run what asks the API; a token that is refused and a silent control plane concern the whole page.
async function attempt(work) {
  try {
    await work();
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) forgetToken();
    else [state.failures, state.trouble] = [state.failures + 1, error instanceof ApiError ? error.message : ""];
    if (!(error instanceof ApiError) && !(error instanceof TypeError) && error.name !== "TimeoutError") console.error(error);
  }
}

const pauseMs = () => (state.failures ? Math.min(MAX_BACKOFF_MS, EVERY_MS * 2 ** (state.failures - 1)) : EVERY_MS);

const newSlot = () => ({ askedMs: -Infinity, seq: -1, asking: false, stale: true, data: undefined, error: "" });

// Ask for what is due: the page, and the parts of the details.
function refresh() {
  const { page, slot, local } = state.page;
  const params = state.route.params;
  fill(slot, page.every, page.still, () => page.load(reader(), { params, local }));
  const { panel } = state;
  if (!panel) return;
  for (const [name, every, still, path] of panelParts(panel.uid, panel.parts.job)) {
    if (!path) continue;
    panel.slots[name] ??= newSlot();
    fill(panel.slots[name], every, still, () => get(state.token, path, PATIENT_MS), (data) => (panel.parts[name] = data), (error) => (panel.error = error));
  }
  if (!state.machines && page !== overview) fill((state.machinesSlot ??= newSlot()), 60000, 60000, reader().machines);
}

const reader = () => ({
  get: (path, timeoutMs) => get(state.token, path, timeoutMs),
  items: (path) => items(state.token, path),
  machines: async () => (state.machines = await items(state.token, "/v1/machines")),
  loadSeries: () => state.series.update(state.token),
});

async function fill(slot, every, still, ask, take = () => {}, fail = () => {}) {
  const age = performance.now() - slot.askedMs;
  const seq = state.cell?.journal_seq;
  if (slot.asking || !(slot.stale || (age >= every && (seq !== slot.seq || age >= still)))) return;
  Object.assign(slot, { asking: true, askedMs: performance.now(), seq, stale: false });
  await attempt(async () => {
    try {
      slot.data = await ask();
      slot.error = "";
      take(slot.data);
      fail("");
    } catch (error) {
      slot.stale = true; // asked again once the cell answers
      if (!(error instanceof ApiError) || error.status === 401 || error.status >= 500) throw error;
      slot.stale = false;
      slot.error = error.message;
      fail(error.message);
    }
  });
  slot.asking = false;
  render();
  if (slot.stale && !state.failures) refresh(); // somebody chose something else meanwhile
}

// ------------------------------------------------------------------------------- where we are

function follow() {
  state.route = readRoute();
  const page = PAGES.find((p) => p.name === (state.route.page || "overview")) ?? overview;
  if (state.page?.page !== page) state.page = { page, slot: newSlot(), local: {} };
  else if (JSON.stringify(state.route.params) !== state.page.params) state.page.slot.stale = true;
  state.page.params = JSON.stringify(state.route.params);
  const uid = state.route.details;
  if (!uid) state.panel = null;
  else if (state.panel?.uid !== uid) state.panel = { uid, slots: {}, parts: {}, error: "" };
}

function visit(route) {
  const before = state.page?.page;
  history.pushState(null, "", href(route));
  arrive(before);
}

function arrive(before) {
  follow();
  render();
  if (before && before !== state.page.page) {
    document.getElementById("main")?.focus();
    document.querySelector("nav.pages [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
    scrollTo(0, 0);
  }
  if (state.cell && !state.failures) refresh();
  else poll();
}

const current = () => ({ page: state.page.page.name, params: state.route.params, details: state.route.details });

function openPanel(uid) {
  state.openedBy ??= document.activeElement;
  visit({ ...current(), details: uid });
  document.getElementById("panel-title")?.focus();
}

function closePanel() {
  visit({ ...current(), details: "" });
  if (state.openedBy?.isConnected) state.openedBy.focus();
  state.openedBy = null;
}

// ----------------------------------------------------------------------------------- actions

function forgetToken() {
  keepToken("");
  Object.assign(state, { token: "", refused: true, me: null, dialog: null, failures: 0 });
}

function enterToken(event) {
  event.preventDefault();
  state.token = new FormData(event.target).get("token").trim();
  keepToken(state.token);
  state.page.slot = newSlot();
  poll();
}

const dialogCalls = {
  close(event) {
    event?.preventDefault();
    state.dialog = null;
    render();
  },
  change(event) {
    state.dialog.values = valuesOf(event.currentTarget);
    render();
  },
  async confirm(event) {
    event.preventDefault();
    const { dialog } = state;
    const [method, path, body] = dialog.action.call(valuesOf(event.currentTarget));
    Object.assign(dialog, { sending: true, error: "" });
    render();
    try {
      await send(state.token, method, path, body && JSON.stringify(body), "application/json");
      state.dialog = null;
      state.page.slot.stale = true;
      for (const slot of Object.values(state.panel?.slots ?? {})) slot.stale = true;
      poll();
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) forgetToken();
      dialog.error = error instanceof ApiError ? error.message : "The control plane does not answer: whether it was done is not known. Look again when it is back.";
    }
    dialog.sending = false;
    render();
  },
};

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    state.copied = text;
  } catch {
    state.copied = ""; // no right to the clipboard: select it, so that the keyboard can copy
    const code = [...document.querySelectorAll("code.command")].find((c) => c.textContent === text);
    if (code) getSelection().selectAllChildren(code);
  }
  render();
}

function chooseWindow(windowS) {
  [state.series, state.cursor.s] = [new Series(windowS), null];
  state.page.slot.stale = true;
  refresh();
}

// ------------------------------------------------------------------------------------- page

function context() {
  return {
    nowS: Date.now() / 1000,
    me: state.me,
    params: state.route.params,
    local: state.page.local,
    series: state.series,
    newest: state.series.samples.at(-1),
    cursor: state.cursor,
    width: state.width,
    silent: state.failures > 0,
    copied: state.copied,
    copy,
    render,
    chooseWindow,
    open: openPanel,
    close: closePanel,
    go: (params) => visit({ ...current(), params }),
    act: (action) => {
      state.dialog = { action, values: firstValues(action) };
      render();
    },
    send: (method, path, body, type) => send(state.token, method, path, body, type),
    reload: () => {
      state.page.slot.stale = true;
      render();
      refresh();
    },
  };
}

function content(ctx) {
  const { page, slot } = state.page;
  if (slot.error) return h("p", { key: "error", class: "card note bad", role: "status" }, slot.error);
  if (slot.data === undefined) return h("p", { key: "asking", class: "card none", role: "status" }, "Asking the cell …");
  return page.view(slot.data, ctx);
}

function frame() {
  const ctx = context();
  const { page, slot } = state.page;
  document.title = `${page.title} · Tidecell`;
  const known = page === overview ? slot.data?.machines : page === machines ? slot.data : state.machines;
  state.machines = known ?? state.machines;
  return [
    h("a", { key: "skip", class: "skip", href: "#main", onclick: skip }, "Skip to the content"),
    header({ ...ctx, cell: state.cell, machines: state.machines }),
    navigation(PAGES, page, state.cell),
    banner(state),
    state.cell?.repair && h("p", { key: "repair", class: "banner", role: "status" }, `The journal was repaired: ${state.cell.repair}`),
    h("main", { key: `main-${page.name}`, id: "main", tabindex: "-1", "aria-label": page.title, class: state.failures ? "stale" : "" }, content(ctx), source(page)),
    state.panel && jobPanel(state.panel, ctx),
    state.dialog && actionDialog(state.dialog, dialogCalls),
  ];
}

function skip(event) {
  event.preventDefault();
  document.getElementById("main").focus();
}

function render() {
  patch(app, h("div", {}, state.token ? frame() : tokenForm(state.refused, enterToken)).children);
  if (!state.token && document.activeElement === document.body) document.getElementById("token").focus();
  const dialog = document.getElementById("dialog");
  if (dialog && !dialog.open) dialog.showModal();
  const chart = document.getElementById("chart") ?? document.getElementById("usage-chart");
  if (chart === watched) return;
  if (watched) resizes.unobserve(watched);
  watched = chart;
  if (chart) resizes.observe(chart);
}

let watched = null;
const resizes = new ResizeObserver(([entry]) => {
  const width = Math.round(entry.contentRect.width);
  if (width === state.width || !width) return;
  state.width = width;
  render();
});

document.addEventListener("visibilitychange", poll);
document.addEventListener("keydown", (event) => event.key === "Escape" && state.panel && !state.dialog && closePanel());
window.addEventListener("popstate", () => {
  // A link with another token may be opened in a tab that shows the console already.
  const token = takeToken();
  if (token !== state.token) Object.assign(state, { token, me: null, page: null });
  arrive(state.page?.page);
});
// Ages go on counting while the control plane is silent.
setInterval(() => state.failures && !document.hidden && render(), 1000);
follow();
render();
poll();
