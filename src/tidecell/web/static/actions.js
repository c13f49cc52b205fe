// What may be done to a job or a machine: a question with what will happen, and the call that does it.
// The server decides who may do what; here those who may not are told so before they ask.

import { h } from "./dom.js";
import { plural, replicas } from "./format.js";

const RANKS = ["viewer", "member", "operator", "admin"];
const rank = (me) => RANKS.indexOf(me?.role);

export const mayOperate = (me) => rank(me) >= 2;
export const mayTouch = (me, team = "") => mayOperate(me) || (rank(me) === 1 && (me.team ?? "") === team);

const jobPath = (job) => `/v1/jobs/${encodeURIComponent(job.uid)}`;
const word = (text) => (/^[\w.\/=:@%+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

// -------------------------------------------------------------------------------- of a job

// The actions that make sense for a job as it is now.
export function jobActions(job) {
  if (job.finished_s || job.stopping) return [];
  const waits = job.held || job.state === "PENDING" || job.schedule;
  return [
    job.update && job.update.phase !== "rolling" && promote(job),
    job.version > 1 && rollback(job),
    !job.schedule && scale(job),
    prio(job),
    job.held || job.begin_s > Date.now() / 1000 ? release(job) : waits && hold(job),
    stop(job),
  ].filter(Boolean);
}

function stop(job) {
  const running = job.running > 0 ? `${plural(job.running, "replica")} that run${job.running === 1 ? "s" : ""} ${job.running === 1 ? "is" : "are"} told to leave and ended after the grace period` : "nothing of it runs";
  return {
    name: "Stop",
    danger: true,
    title: `Stop ${job.name}?`,
    text: `It ends for good: ${running}. Its logs stay.`,
    fields: [
      { name: "now", label: "at once, without the grace period", type: "checkbox" },
      job.kind === "alloc" && { name: "force", label: `with all jobs in it (${plural(job.members?.length ?? 0, "job")})`, type: "checkbox" },
    ].filter(Boolean),
    command: (v) => `tide stop ${word(job.name)}${v.now ? " --now" : ""}${v.force ? " --force" : ""}`,
    call: (v) => ["DELETE", `${jobPath(job)}?${v.now ? "now=1&" : ""}${v.force ? "force=1" : ""}`],
  };
}

function scale(job) {
  const what = job.array ? "How many items run at once." : "Its gang (min) starts together or not at all; what is above it may be taken.";
  return {
    name: "Scale",
    title: `Scale ${job.name}`,
    text: `${what} It has ${replicas(job.replicas)} now.`,
    fields: [
      { name: "min", label: "min", type: "number", value: job.replicas.min, min: 0 },
      { name: "max", label: "max", type: "number", value: job.replicas.max, min: 0 },
    ],
    command: (v) => `tide scale ${word(job.name)} ${v.min === v.max ? v.min : `${v.min}..${v.max}`}`,
    call: (v) => ["PATCH", jobPath(job), { replicas: { min: Number(v.min), max: Number(v.max) } }],
  };
}

function prio(job) {
  return {
    name: "Priority",
    title: `Change the priority of ${job.name}`,
    text: "A band decides who may take from whom: monitoring, production, batch, best-effort. A number behind it (batch+5) only orders within the band.",
    fields: [{ name: "priority", label: "priority", type: "text", value: job.priority }],
    command: (v) => `tide prio ${word(job.name)} ${word(v.priority)}`,
    call: (v) => ["PATCH", jobPath(job), { priority: v.priority }],
  };
}

function hold(job) {
  const text = job.schedule ? "It does not fire until it is released; what it missed follows its catch_up rule." : "What waits of it does not start until it is released; what runs goes on.";
  return simple(job, "Hold", "hold", `Hold ${job.name} back?`, text);
}

function release(job) {
  const text = job.schedule ? "It fires again." : "It may start as soon as there is room, also before its begin time.";
  return simple(job, "Release", "release", `Release ${job.name}?`, text);
}

function promote(job) {
  const text = `Version ${job.update.version} goes on to all replicas: ${plural(job.update.old, "replica")} run${job.update.old === 1 ? "s" : ""} an older one.`;
  return simple(job, "Promote", "promote", `Promote the update of ${job.name}?`, text);
}

function simple(job, name, verb, title, text) {
  return { name, title, text, fields: [], command: () => `tide ${verb} ${word(job.name)}`, call: () => ["POST", `${jobPath(job)}/${verb}`] };
}

function rollback(job) {
  return {
    name: "Roll back",
    title: `Roll ${job.name} back?`,
    text: `It is at version ${job.version}. The earlier version is rolled out like any update. 0: the last one that was healthy.`,
    fields: [{ name: "version", label: "version", type: "number", value: 0, min: 0, max: job.version - 1 }],
    command: (v) => `tide rollback ${word(job.name)}${Number(v.version) ? ` ${v.version}` : ""}`,
    call: (v) => ["POST", `${jobPath(job)}/rollback`, { version: Number(v.version) }],
  };
}

// ---------------------------------------------------------------------------- of a machine

export function machineActions(machine) {
  const path = `/v1/machines/${encodeURIComponent(machine.name)}/drain`;
  if (machine.drain)
    return [
      {
        name: "Cancel the drain",
        title: `Let ${machine.name} take work again?`,
        text: "What has left it does not come back by itself; new work may be placed there.",
        fields: [],
        command: () => `tide drain ${word(machine.name)} --cancel`,
        call: () => ["POST", path, { cancel: true }],
      },
    ];
  return [
    {
      name: "Drain",
      danger: true,
      title: `Drain ${machine.name}?`,
      text: `It takes no new work, and its ${plural(machine.num_tasks ?? 0, "task")} leave: services start elsewhere first, elastic jobs shrink, what is left at the deadline is ended with its grace period.`,
      fields: [{ name: "minutes", label: "deadline, minutes", type: "number", value: 10, min: 1 }],
      command: (v) => `tide drain ${word(machine.name)} --deadline ${v.minutes}m`,
      call: (v) => ["POST", path, { deadline_s: 60 * Number(v.minutes) }],
    },
  ];
}

// --------------------------------------------------------------------------------- the parts

export function actionButtons(actions, ask) {
  if (!actions.length) return null;
  return h("div", { key: "actions", class: "actions", role: "group", "aria-label": "Actions" }, actions.map((action) =>
    h("button", { type: "button", key: action.name, class: action.danger ? "small danger" : "small", onclick: () => ask(action) }, action.name)));
}

export const lookOnly = (me, team) =>
  h("p", { key: "look-only", class: "sub" }, `${me.name} is ${me.role === "member" ? `a member of team ${me.team}` : `a ${me.role}`}: ${team === undefined ? "operators" : "members of its team, and operators,"} may change it.`);

// What the fields of a dialog say now.
export function valuesOf(form) {
  const boxes = [...form.querySelectorAll("input[type=checkbox]")].map((box) => [box.name, box.checked]);
  return { ...Object.fromEntries(new FormData(form)), ...Object.fromEntries(boxes) };
}

export const firstValues = (action) => Object.fromEntries(action.fields.map((f) => [f.name, f.type === "checkbox" ? false : String(f.value)]));

// The question: what happens, what to type for the same, and two buttons. Escape means no.
export function actionDialog({ action, values, sending, error }, { change, confirm, close }) {
  const line = ({ name, label, type, value, ...more }) =>
    h("label", { key: name, class: type === "checkbox" ? "check" : "" }, h("span", {}, label), h("input", { name, type, value, required: type !== "checkbox", autocomplete: "off", ...more }));
  return h("dialog", { key: "dialog", id: "dialog", "aria-labelledby": "dialog-title", oncancel: close }, [
    h("form", { onsubmit: confirm, oninput: change }, [
      h("h2", { id: "dialog-title" }, action.title),
      h("p", {}, action.text),
      action.fields.map(line),
      h("p", { class: "sub" }, "The same by hand:"),
      h("code", { class: "command" }, action.command(values)),
      error && h("pre", { class: "note bad", role: "alert" }, error),
      h("div", { class: "dialog-buttons" }, [
        h("button", { type: "button", class: "small", onclick: close }, "Cancel"),
        h("button", { type: "submit", class: action.danger ? "small danger" : "small primary", disabled: sending }, sending ? "Sending …" : action.name),
      ]),
    ]),
  ]);
}
