// The panel of one job: its tasks, why it waits (or is smaller than it could be), and the end of its logs.

import { h } from "./dom.js";
import { bytes, clock, cores, duration, number, plural, replicas } from "./format.js";
import { stateMark } from "./views.js";

export function jobPanel({ uid, job, why, logs, error }, close, nowS) {
  return h("aside", { key: "panel", class: "panel", "aria-label": `Details of ${job?.name ?? uid}` }, [
    h("div", { class: "panel-head" }, [
      h("h2", { id: "panel-title", tabindex: "-1" }, job?.name ?? uid, h("span", { class: "sub" }, ` ${uid}`)),
      h("button", { type: "button", class: "close", onclick: close, "aria-label": "Close details" }, "✕"),
    ]),
    error && h("p", { class: "note bad", role: "status" }, error),
    job && [facts(job, nowS), whyPart(why, nowS), tasks(job), logsPart(logs)],
    !job && !error && h("p", { class: "none" }, "Asking the cell …"),
  ]);
}

function facts(job, nowS) {
  const r = job.resources;
  const needs = [
    r.gpu_millis ? plural(r.gpu_millis / 1000, "accelerator") : "",
    `${cores(r.cpu_millis)} cores`,
    r.memory_bytes ? bytes(r.memory_bytes) : "",
  ].filter(Boolean).join(", ");
  return h("dl", { class: "facts" }, [
    fact("state", stateMark(job.state)),
    fact("replicas", `${job.running} running, ${job.desired} wanted, ${replicas(job.replicas)} allowed`),
    fact("each needs", needs),
    fact("priority", job.priority),
    fact("submitted", `${clock(job.submitted_s)}, ${duration(nowS - job.submitted_s)} ago`),
    job.endpoint && fact("endpoint", job.endpoint),
    job.models?.length && fact("models", job.models.join(", ")),
    job.command && fact("command", h("code", {}, job.command)),
    (job.message || job.last_event) && fact("last", job.message || job.last_event),
  ]);
}

const fact = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));

// --------------------------------------------------------------------------------------- why

function whyPart(why, nowS) {
  if (!why) return null;
  const parts = [
    why.reasons?.length && h("p", {}, why.reasons.map((reason) => h("span", { class: "reason" }, reason)), why.detail),
    why.shrunk && h("p", {}, why.shrunk),
    why.message && h("p", {}, why.message),
    why.needs && h("p", {}, h("b", {}, "needs "), why.needs),
    why.free_now && h("p", {}, h("b", {}, "free now "), why.free_now),
    why.holders?.length && holders(why.holders, nowS),
    why.fixes?.length && fixes("It would start now if", why.fixes, "fixes"),
    why.no_help?.length && fixes("Would not help", why.no_help, "no-help"),
    why.expected_s && h("p", {}, h("b", {}, "otherwise at the latest "), clock(why.expected_s), why.expected_why && `, ${why.expected_why}`),
  ].filter(Boolean);
  const live = ["RUNNING", "SUCCEEDED"].includes(why.state);
  return h("section", { key: "why", "aria-label": "Why" }, h("h3", {}, "Why"), parts.length ? parts : h("p", { class: "none" }, live ? "Nothing holds it back." : "The cell gives no reason."));
}

function holders(list, nowS) {
  const line = (holder) => {
    const until = holder.ends_by_s ? `, ends within ${duration(holder.ends_by_s - nowS)}` : "";
    const leaving = holder.leaving ? ", leaving" : "";
    return h("li", {}, h("b", {}, holder.job), ` (${holder.priority}) ${plural(holder.num_tasks, "task")} on ${holder.machine}, runs ${duration(holder.running_s ?? 0)}${leaving}${until}`);
  };
  return [h("h4", {}, "Held by"), h("ul", {}, list.map(line))];
}

function fixes(title, list, name) {
  const line = (fix) =>
    h("li", {}, fix.change, fix.command && h("code", { class: "command" }, fix.command), fix.effect && h("div", { class: "sub" }, fix.effect));
  return [h("h4", {}, title), h("ul", { class: name }, list.map(line))];
}

// ------------------------------------------------------------------------------ tasks and logs

function tasks(job) {
  const rows = (job.tasks ?? []).map((t) =>
    h("tr", { key: t.index }, [
      h("th", { scope: "row" }, number(t.index)),
      h("td", {}, stateMark(t.state), t.ready && " ready", t.leaving && h("div", { class: "sub" }, `leaving: ${t.leaving}`), t.message && h("div", { class: "sub" }, t.message)),
      h("td", {}, t.machine ?? ""),
      h("td", { class: "num" }, number(t.attempt ?? 0)),
      h("td", { class: "num" }, cores(t.cpu_millis)),
      h("td", { class: "num" }, bytes(t.memory_bytes)),
    ]),
  );
  const heads = ["Replica", "State", "Machine", "Attempt", "Cores", "Memory"];
  return h("section", { key: "tasks", "aria-label": "Tasks" }, [
    h("h3", {}, "Tasks"),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Tasks table" }, [
      h("table", {}, h("thead", {}, h("tr", {}, heads.map((t, i) => h("th", { scope: "col", class: i > 2 ? "num" : "" }, t)))), h("tbody", {}, rows)),
    ]),
  ]);
}

function logsPart(logs) {
  return h("section", { key: "logs", "aria-label": "Logs" }, [
    h("h3", {}, "Logs", h("span", { class: "sub" }, " the last 200 lines")),
    h("pre", { tabindex: "0", role: "region", "aria-label": "Log text" }, logs || "No output yet."),
  ]);
}
