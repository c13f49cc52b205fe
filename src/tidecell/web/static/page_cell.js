// Pages about the cell: machines and their drains, teams and their quota, what happened.

import { actionButtons, lookOnly, machineActions, mayOperate } from "./actions.js";
import { h } from "./dom.js";
import { ago, bytes, clock, cores, day, number, plural } from "./format.js";
import { amounts, bandMark, bar, cell, choice, field, filters, head, num, sub, table, wide } from "./ui.js";

// --------------------------------------------------------------------------------- machines

export const machines = {
  name: "machines",
  title: "Machines",
  api: "/v1/machines",
  cli: "tide machines, tide drain MACHINE",
  every: 2000,
  still: 4000,
  load: ({ items }) => items("/v1/machines"),
  view: (list, ctx) => [machinesTable(list, ctx, true), drainsTable(list, ctx)],
};

const status = (m) => (m.up ? (m.drain ? `◑ ${m.drain.text}` : "● up") : "○ down");

export function machinesTable(list, ctx, full = false) {
  const rows = list.map((m) =>
    h("tr", { key: m.name }, [
      head(m.name, sub(status(m), ` · ${plural(m.num_tasks ?? 0, "task")} · ${m.isolation}`), full && attributes(m)),
      h("td", { class: "wide" }, [
        bar("Cores", m.capacity.cpu_millis ?? 0, m.reserved.cpu_millis ?? 0, m.cpu_used_millis ?? 0, cores),
        bar("Memory", m.capacity.memory_bytes ?? 0, m.reserved.memory_bytes ?? 0, m.memory_used_bytes ?? 0, bytes),
        m.capacity.gpu_millis &&
          `${(m.reserved.gpu_millis ?? 0) / 1000} of ${plural(m.capacity.gpu_millis / 1000, "accelerator")} reserved, ${m.accelerators?.[0]?.type ?? ""}`,
      ]),
    ]),
  );
  return table("Machines", ["Machine", "Reserved and used"], rows, "No machine has joined yet. The agent starts with tide up.");
}

function attributes(m) {
  const known = Object.entries(m.attributes ?? {}).map(([key, value]) => `${key}=${value}`);
  const more = [known.join(" "), m.sharing && `shares: ${m.sharing}`, m.holds?.length && `holds ${m.holds.join(", ")}`, m.held_until_s && `lost with many others; waits until ${clock(m.held_until_s)}`];
  return more.filter(Boolean).map((text) => sub(text));
}

function drainsTable(list, ctx) {
  const may = mayOperate(ctx.me);
  const rows = list.map((m) =>
    h("tr", { key: m.name }, [
      head(m.name),
      wide(m.drain ? [m.drain.drained ? "✓ " : "◑ ", m.drain.text, m.drain.who && sub(`asked for by ${m.drain.who}`)] : m.up ? "takes work" : "is down"),
      cell(m.drain ? [`from ${clock(m.drain.start_s)}`, sub(`empty by ${clock(m.drain.deadline_s)}, ${ago(m.drain.deadline_s, ctx.nowS)}`)] : "–"),
      num(number(m.num_tasks ?? 0)),
      cell(may ? actionButtons(machineActions(m), ctx.act) : ""),
    ]),
  );
  const more = !may && ctx.me && lookOnly(ctx.me);
  return table("Drains", ["Machine", "State", "When", ">Tasks left", ""], rows, "Once a machine has joined it can be emptied here, or by tide drain MACHINE.", { more });
}

// ------------------------------------------------------------------------------------ teams

export const teams = {
  name: "teams",
  title: "Teams",
  api: "/v1/quota",
  cli: "tide quota",
  every: 2000,
  still: 10000,
  load: ({ items }) => items("/v1/quota"),
  view(list, ctx) {
    const rows = list.map((t) =>
      h("tr", { key: `${t.team}/${t.band}` }, [
        head(t.team, sub(t.cohort ? `cohort ${t.cohort}, ` : "", `weight ${number(t.weight ?? 1, 2)}`)),
        cell(bandMark(t.band), t.band),
        wide(t.valid === false ? "none now" : quotaBars(t)),
        cell(amounts(t.borrowed), t.most && Object.keys(t.most).length > 0 && sub(`with all it may borrow: ${amounts(t.most)}`)),
        cell(amounts(t.lent)),
        cell(amounts(t.waiting), t.leaving && Object.keys(t.leaving).length > 0 && sub(`leaving: ${amounts(t.leaving)}`)),
        num(number(t.share ?? 0, 3)),
        cell(validity(t, ctx.nowS)),
      ]),
    );
    const heads = ["Team", "Band", "Used of its own", "Borrows", "Lends", "Waits for", ">Share", "Valid"];
    const more = h("p", { class: "sub" }, "Share: dominant share divided by the weight; the team with the least goes first.");
    return table("Quota", heads, rows, "No quota is set: everything is allowed. Set one: tide quota apply -f quota.yaml", { more: rows.length > 0 && more });
  },
};

function quotaBars(t) {
  const limited = Object.keys(t.own ?? {});
  const rest = Object.fromEntries(Object.entries(t.used ?? {}).filter(([c]) => !limited.includes(c)));
  const format = (c) => (c === "memory" ? bytes : cores);
  return [
    limited.map((c) => bar(c, t.own[c], t.used?.[c] ?? 0, null, format(c), ["used"])),
    Object.keys(rest).length > 0 && sub(`without a limit: ${amounts(rest)}`),
    !limited.length && !Object.keys(rest).length && sub("uses nothing"),
  ];
}

function validity(t, nowS) {
  const lines = [t.from_s > nowS && `from ${day(t.from_s)}`, t.until_s && `until ${day(t.until_s)}`, t.renews_s && `renews ${ago(t.renews_s, nowS)}`].filter(Boolean);
  return lines.length ? lines.map((text) => h("div", {}, text)) : "no end";
}

// The overview's row for each team and band; nothing at all where no quota is set.
export function teamsTable(list) {
  if (!list?.length) return null;
  const rows = list.map((t) =>
    h("tr", { key: `${t.team}/${t.band}` }, [
      head(t.team, sub(t.cohort ? `cohort ${t.cohort}` : "")),
      cell(bandMark(t.band), t.band),
      cell(t.valid === false ? "none now" : amounts(t.own)),
      cell(amounts(t.used), t.borrowed && Object.keys(t.borrowed).length > 0 && sub(`borrows ${amounts(t.borrowed)}`), t.lent && Object.keys(t.lent).length > 0 && sub(`lends ${amounts(t.lent)}`)),
      cell(amounts(t.waiting)),
    ]),
  );
  return table("Teams", ["Team", "Band", "Quota", "Used", "Waiting"], rows, "");
}

// ----------------------------------------------------------------------------------- events

const NUM_EVENTS = 200;
const TIMES = [["", "all"], ["600", "last 10 min"], ["3600", "last hour"], ["86400", "last day"]];

export const events = {
  name: "events",
  title: "Events",
  api: "/v1/events?job=&kind=&team=&since=&before=",
  cli: "tide events NAME --kind --team --since",
  every: 3000,
  still: 60000,
  async load({ get, items }, { params, local }) {
    local.kinds ??= await items("/v1/events/kinds");
    const { job, kind, team, since, before } = params;
    const query = Object.entries({ job, kind, team, since, before, limit: NUM_EVENTS }).filter(([, v]) => v);
    return { list: await items(`/v1/events?${new URLSearchParams(query)}`), kinds: local.kinds };
  },
  view({ list, kinds }, ctx) {
    const { params } = ctx;
    const before = filters("Filter events", [
      field("job", "Job", params.job, { placeholder: "name or uid" }),
      choice("kind", "Kind", [["", "any"], ...kinds], params.kind ?? ""),
      field("team", "Team", params.team),
      choice("since", "Time", TIMES, params.since ?? ""),
    ], ctx);
    const older = () => ctx.go({ ...params, before: String(list[0].seq) });
    const more = h("div", { class: "pager" }, [
      params.before && h("button", { type: "button", class: "small", onclick: () => ctx.go({ ...params, before: "" }) }, "← Newest"),
      list.length >= NUM_EVENTS && h("button", { type: "button", class: "small", onclick: older }, "Older →"),
    ]);
    const filtered = ["job", "kind", "team", "since", "before"].some((name) => params[name]);
    return eventsTable(list, "Events", ctx, { before, more, empty: filtered ? "Nothing like that happened. Take a filter back to see more." : undefined, full: true });
  },
};

export function eventsTable(list, caption, ctx, { before, more, empty, full } = {}) {
  const today = day(ctx.nowS);
  const rows = [...list].reverse().map((e) =>
    h("tr", { key: e.seq }, [
      h("td", { class: "time" }, h("time", { datetime: new Date(e.at_s * 1000).toISOString() }, day(e.at_s) === today ? clock(e.at_s) : `${day(e.at_s)} ${clock(e.at_s)}`)),
      full && cell(e.type),
      cell(e.job ? h("button", { type: "button", class: "link quiet", onclick: () => ctx.open(e.job), "aria-label": `Open run ${e.job}` }, e.job) : ""),
      full
        ? h("td", { class: "wide" }, h("details", {}, h("summary", {}, e.text || e.type), h("pre", {}, JSON.stringify(e.body ?? {}, null, 1))))
        : h("td", { class: "wide" }, e.text || e.type),
    ]),
  );
  const heads = full ? ["Time", "Kind", "Run", "What happened"] : ["Time", "Run", "What happened"];
  return table(caption, heads, rows, empty ?? "Nothing happened yet.", { before, more });
}
