// Pages about what is planned ahead: schedules and allocs.

import { actionButtons, jobActions, mayTouch } from "./actions.js";
import { h } from "./dom.js";
import { ago, bytes, clock, cores, day, duration, plural } from "./format.js";
import { bandMark, bar, card, cell, head, openButton, resources, stateMark, sub, table, wide } from "./ui.js";

const OVERLAP = {
  skip: "skips a firing while a run goes on",
  queue: "queues a firing while a run goes on",
  replace: "a new firing replaces a run that goes on",
};
const CATCH_UP = { none: "lets missed firings go", last: "makes up for the last missed firing", all: "makes up for all missed firings" };

const moment = (at_s, nowS) => `${Math.abs(at_s - nowS) > 43200 ? `${day(at_s)} ` : ""}${clock(at_s, at_s % 60 !== 0)}`;

// -------------------------------------------------------------------------------- schedules

export const schedules = {
  name: "schedules",
  title: "Schedules",
  api: "/v1/schedules",
  cli: "tide ps, tide why NAME",
  every: 2000,
  still: 10000,
  load: ({ items }) => items("/v1/schedules"),
  view(list, ctx) {
    const rows = list.map((s) =>
      h("tr", { key: s.uid }, [
        head(openButton(s, ctx.open), sub([s.team, s.priority].filter(Boolean).join(", "))),
        cell(h("code", {}, s.cron), sub(s.timezone)),
        wide(next(s, ctx.nowS)),
        wide(runs(s, ctx)),
        wide(OVERLAP[s.overlap] ?? s.overlap, sub(CATCH_UP[s.catch_up] ?? s.catch_up)),
        cell(mayTouch(ctx.me, s.team) ? actionButtons(jobActions({ ...s, schedule: s, state: "PENDING", replicas: { min: 1, max: 1 } }).filter((a) => ["Hold", "Release"].includes(a.name)), ctx.act) : ""),
      ]),
    );
    const heads = ["Schedule", "Fires", "Next", "Last runs", "Overlap and missed", ""];
    return table("Schedules", heads, rows, "No job has a schedule. In a spec: schedule: {cron: \"0 3 * * *\"}, then tide apply -f FILE");
  },
};

function next(s, nowS) {
  const owed = s.due?.length ? sub(`${plural(s.due.length, "firing")} to make up once the run before is over, from ${moment(s.due[0], nowS)} on`) : null;
  if (s.stopping) return "it is stopping";
  if (s.held) return [h("span", { class: "reason" }, "OnHold"), "does not fire until it is released", owed];
  const [first, ...later] = s.next ?? [];
  if (!first) return ["never again", owed];
  return [h("b", {}, moment(first, nowS)), ` ${first <= nowS ? "now" : ago(first, nowS)}`, sub("then ", later.map((t) => moment(t, nowS)).join(", ")), owed];
}

function runs(s, ctx) {
  if (!s.runs?.length) return sub("it has not fired yet");
  const line = (run) => {
    const took = run.finished_s ? `, took ${duration(run.finished_s - (run.started_s || run.finished_s))}` : "";
    return h("li", { key: run.uid }, openButton(run, ctx.open), " ", stateMark(run.state), h("span", { class: "sub" }, `${took}${run.message ? `, ${run.message}` : ""}`));
  };
  const [shown, rest] = [s.runs.slice(0, 3), s.runs.slice(3)];
  return [
    h("ul", { class: "plain" }, shown.map(line)),
    rest.length > 0 && h("details", {}, h("summary", {}, plural(rest.length, "earlier run")), h("ul", { class: "plain" }, rest.map(line))),
  ];
}

// ----------------------------------------------------------------------------------- allocs

export const allocs = {
  name: "allocs",
  title: "Allocs",
  api: "/v1/allocs",
  cli: "tide alloc, tide status NAME",
  every: 2000,
  still: 10000,
  load: ({ items }) => items("/v1/allocs"),
  view(list, ctx) {
    if (!list.length) return card("Allocs", h("p", { class: "none" }, "Nothing is reserved. Keep room for work that comes and goes: tide alloc lab --cpu 4 --memory 16GB"));
    return list.map((alloc) => allocCard(alloc, ctx));
  },
};

function allocCard(alloc, ctx) {
  const envelopes = alloc.envelopes ?? [];
  const rows = envelopes.map((e) =>
    h("tr", { key: e.name }, [
      head(e.name, sub(e.machine ? `on ${e.machine}` : "waits for room", e.leaving ? ", leaving" : "")),
      wide(e.machine ? roomBars(e) : sub(`asks for ${resources(e.room)}`)),
      wide(inside(e, ctx)),
    ]),
  );
  const facts = [
    alloc.team && `team ${alloc.team}`,
    alloc.user,
    alloc.ends_by_s ? `ends ${ago(alloc.ends_by_s, ctx.nowS)}` : "no end set",
    alloc.stopping && "stopping",
  ].filter(Boolean).join(" · ");
  const before = [
    h("p", {}, bandMark((alloc.priority ?? "").replace(/[+-]\d+$/, "")), alloc.priority, h("span", { class: "sub" }, ` ${facts}`)),
    alloc.detail && h("p", { class: "note" }, alloc.detail),
    alloc.waiting?.length > 0 && h("p", {}, h("b", {}, "waits to enter: "), alloc.waiting.join(", ")),
  ];
  const aside = h("div", { class: "aside" }, h("button", { type: "button", class: "link", onclick: () => ctx.open(alloc.uid), "aria-label": `Details of ${alloc.name}` }, "details"));
  return table(`Alloc ${alloc.name}`, ["Envelope", "Room", "Inside"], rows, "It holds no envelope now.", { before, aside });
}

function roomBars({ room, free = {} }) {
  const used = (part) => (room[part] ?? 0) - (free[part] ?? 0);
  const line = (name, part, format) => room[part] > 0 && bar(name, room[part], used(part), null, format, ["in use"]);
  return [line("Accelerators", "gpu_millis", cores), line("Cores", "cpu_millis", cores), line("Memory", "memory_bytes", bytes), sub(`free: ${resources(free)}`)];
}

function inside(e, ctx) {
  if (!e.inside?.length) return e.machine ? sub("nobody is in it") : "";
  return h("ul", { class: "plain" }, e.inside.map((t) =>
    h("li", { key: `${t.uid}/${t.index}` }, openButton({ uid: t.uid, name: t.job }, ctx.open), `/${t.index} `, stateMark(t.state), h("span", { class: "sub" }, ` ${resources(t.resources)}${t.leaving ? ", leaving" : ""}`))));
}
