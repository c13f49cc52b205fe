// The details of one job: what it is, what may be done, why it waits, versions, tasks, events, logs.

import { actionButtons, jobActions, lookOnly, mayTouch } from "./actions.js";
import { h } from "./dom.js";
import { ago, bytes, clock, cores, duration, number, plural, replicas } from "./format.js";
import { eventsTable } from "./page_cell.js";
import { budgetText, idleText, updateText } from "./page_work.js";
import { cell, command, head, num, plainTable, resources, stateMark, sub, wide } from "./ui.js";
import { whyParts } from "./why.js";

const MAX_TASKS = 100;

// What is asked for, and how often: [name, least pause, pause while nothing happened in the cell, path or null].
export function panelParts(uid, job) {
  const path = `/v1/jobs/${encodeURIComponent(uid)}`;
  return [
    ["job", 1000, 2000, path],
    ["why", 10000, 60000, `${path}/why`],
    ["history", 5000, 30000, `${path}/history`],
    ["events", 5000, 30000, `/v1/events?limit=30&job=${encodeURIComponent(job?.uid ?? uid)}`],
    ["logs", 3000, job?.running ? 3000 : 15000, job?.schedule || job?.kind === "alloc" ? null : `${path}/logs?tail=200`],
  ];
}

export function jobPanel({ uid, parts, error }, ctx) {
  const { job, why, history, events, logs } = parts;
  return h("aside", { key: "panel", class: "panel", "aria-label": `Details of ${job?.name ?? uid}` }, [
    h("div", { class: "panel-head" }, [
      h("h2", { id: "panel-title", tabindex: "-1" }, job?.name ?? uid, h("span", { class: "sub" }, ` ${uid}`)),
      h("button", { type: "button", class: "close", onclick: ctx.close, "aria-label": "Close details" }, "✕"),
    ]),
    error && h("p", { class: "note bad", role: "status" }, error),
    job && [
      mayTouch(ctx.me, job.team) ? actionButtons(jobActions(job), ctx.act) : ctx.me && !job.finished_s && lookOnly(ctx.me, job.team ?? ""),
      facts(job, ctx),
      why && h("section", { key: "why", "aria-label": "Why" }, h("h3", {}, "Why"), whyParts(why, ctx)),
      history?.items?.length > 1 && versions(job, history.items, ctx),
      job.kind === "alloc" && members(job, ctx),
      job.runs?.length > 0 && section("Runs", h("p", {}, job.runs.join(", "))),
      (job.tasks ?? []).length > 0 && tasks(job),
      events && section("Events", eventsTable(events.items, "Events of it", ctx).children.slice(1)),
      logs !== undefined && logsPart(logs),
    ],
    !job && !error && h("p", { class: "none" }, "Asking the cell …"),
  ]);
}

const section = (title, content, note) => h("section", { key: title, "aria-label": title }, h("h3", {}, title, note && h("span", { class: "sub" }, ` ${note}`)), content);

const fact = (name, value) => h("div", { key: name }, h("dt", {}, name), h("dd", {}, value));

function facts(job, ctx) {
  const { nowS } = ctx;
  const size = job.schedule ? `each run: ${replicas(job.replicas)}` : `${job.running} running, ${job.desired} wanted, ${replicas(job.replicas)} allowed`;
  return h("dl", { class: "facts" }, [
    fact("state", [stateMark(job.state), job.stopping && ` stopping: ${job.stopping}`, job.held && " held back"]),
    fact("replicas", size),
    job.array && fact("items", Object.entries(job.array.counts).map(([state, n]) => `${number(n)} ${state.toLowerCase()}`).join(", ")),
    job.array?.failed?.length && fact("failed", job.array.failed.join(", ")),
    fact("each needs", resources(job.resources)),
    fact("priority", job.priority),
    job.team && fact("team", job.team),
    job.position > 0 && fact("place", `${job.position} among all that wait${job.team ? `, ${job.team_position} of team ${job.team}` : ""}`),
    fact("submitted", `${clock(job.submitted_s)}, ${ago(job.submitted_s, nowS)}`),
    job.started_s && fact("ran", duration((job.finished_s || nowS) - job.started_s)),
    job.begin_s > nowS && fact("begins", ago(job.begin_s, nowS)),
    job.schedule && fact("fires", [`${job.schedule.cron} (${job.schedule.timezone ?? "UTC"})`, job.next_s > 0 && `, next ${ago(job.next_s, nowS)}`]),
    job.alloc && fact("alloc", job.alloc),
    job.disruptions && fact("budget", budgetText(job.disruptions)),
    job.update && fact("update", [updateText(job.update), sub(job.update.text)]),
    job.kind === "dev" && fact("last used", idleText(job, nowS)),
    job.endpoint && fact("endpoint", job.endpoint),
    job.models?.length && fact("models", job.models.join(", ")),
    Object.keys(job.labels ?? {}).length > 0 && fact("labels", Object.entries(job.labels).map(([k, v]) => `${k}=${v}`).join(", ")),
    job.command && fact("command", h("code", {}, job.command)),
    (job.message || job.last_event) && fact("last", job.message || job.last_event),
  ]);
}

function versions(job, list, ctx) {
  const rows = [...list].reverse().map((v) =>
    h("tr", { key: v.number }, [
      head(`${v.number}`, v.current && sub("current")),
      cell(clock(v.at_s), sub(ago(v.at_s, ctx.nowS))),
      wide((v.changes ?? []).map((line) => h("div", {}, line)), v.why && sub(v.why), !v.current && !job.finished_s && command(`tide rollback ${job.name} ${v.number}`, ctx)),
      cell(v.who ?? ""),
      cell(v.stable ? "● healthy" : "◔ not proven"),
    ]),
  );
  return section("Versions", plainTable("Versions", ["Version", "When", "Changes", "By", "State"], rows));
}

function members(job, ctx) {
  const rows = Object.entries(job.free ?? {}).map(([name, free]) => h("tr", { key: name }, head(name), cell(resources(free))));
  return section("Inside", [
    h("p", {}, (job.members ?? []).length ? job.members.join(", ") : "Nobody is in it. Enter it with:"),
    !(job.members ?? []).length && command(`tide run --alloc ${job.name} -- COMMAND`, ctx),
    rows.length > 0 && plainTable("Free room", ["Envelope", "Free"], rows),
  ]);
}

function tasks(job) {
  const shown = job.tasks.slice(0, MAX_TASKS);
  const rows = shown.map((t) =>
    h("tr", { key: t.index }, [
      head(number(t.index)),
      cell(stateMark(t.state), t.ready && " ready", t.leaving && sub(`leaving: ${t.leaving}`), t.message && sub(t.message)),
      cell(t.machine ?? "", t.envelope && sub(t.envelope)),
      num(number(t.attempt ?? 0)),
      num(cores(t.cpu_millis)),
      num(bytes(t.memory_bytes)),
    ]),
  );
  const note = job.tasks.length > MAX_TASKS ? `the first ${MAX_TASKS} of ${plural(job.tasks.length, "replica")}` : "";
  return section("Tasks", plainTable("Tasks", ["Replica", "State", "Machine", ">Attempt", ">Cores", ">Memory"], rows), note);
}

function logsPart(logs) {
  return section("Logs", h("pre", { tabindex: "0", role: "region", "aria-label": "Log text" }, logs || "No output yet."), "the last 200 lines");
}
