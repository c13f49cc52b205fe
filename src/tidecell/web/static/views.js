// The parts of the page, each a function of what the API said.

import { lineClass, seriesNames } from "./chart.js";
import { h } from "./dom.js";
import { BANDS, bytes, clock, cores, duration, milliseconds, number, plural, replicas, short } from "./format.js";

const STATE_MARKS = {
  PENDING: "◷",
  STARTING: "◔",
  RUNNING: "●",
  RESIZING: "◑",
  SUCCEEDED: "✓",
  FAILED: "✕",
  CANCELLED: "–",
  TIMEOUT: "✕",
};

export const stateMark = (state) =>
  h("span", { class: `state state-${state.toLowerCase()}` }, h("span", { "aria-hidden": "true" }, STATE_MARKS[state] ?? "?"), ` ${state}`);

// What was last known of a part says nothing once the control plane is silent.
function upDown(name, up, silent) {
  const [word, mark] = silent ? ["unknown", "?"] : up ? ["up", "●"] : ["down", "○"];
  return h("span", { class: `pill ${word}` }, h("span", { "aria-hidden": "true" }, mark), ` ${name} ${word}`);
}

const bandMark = (band) => h("span", { class: `swatch band-${band}`, "aria-hidden": "true" });

// ------------------------------------------------------------------------------------ header

export function header({ cell, machines }, nowS, silent) {
  const up = (machines ?? []).filter((m) => m.up);
  const sum = (field, part) => up.reduce((total, m) => total + (m[field]?.[part] ?? 0), 0);
  const gpus = sum("capacity", "gpu_millis") / 1000;
  return h("header", { class: "top", key: "header" }, [
    h("h1", {}, "tide", h("span", {}, "cell")),
    cell && [
      h("div", { class: "pills" }, upDown("agent", cell.agent_up, silent), upDown("router", cell.router_up, silent)),
      h("dl", { class: "facts" }, [
        fact("capacity", [`${cores(sum("capacity", "cpu_millis"))} cores · ${bytes(sum("capacity", "memory_bytes"))}`, gpus > 0 && ` · ${plural(gpus, "accelerator")}`]),
        fact("epoch", number(cell.epoch)),
        !silent && fact("up for", duration(nowS - cell.started_s)),
        fact("router", cell.router_url),
        fact("home", h("span", { title: cell.home }, cell.home)),
        fact("version", cell.version),
      ]),
    ],
  ]);
}

const fact = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));

// ----------------------------------------------------------------------------------- readout

// The chart's legend, with the values at the cursor, or the newest ones.
export function readout(samples, sample, when) {
  const reserved = BANDS.reduce((sum, band) => sum + (sample.reserved_by_band?.[band] ?? 0), 0);
  const used = Object.values(sample.jobs ?? {}).reduce((sum, j) => sum + (j.used_cpu_millis ?? 0), 0);
  return h("div", { class: "readout" }, [
    h("p", { class: "when" }, h("strong", {}, clock(sample.at_s)), ` ${when}`),
    h("dl", { "data-readout": "capacity" }, [
      ...[...BANDS].reverse().map((band) => row(bandMark(band), band, cores(sample.reserved_by_band?.[band]))),
      row(h("span", { class: "swatch free", "aria-hidden": "true" }), "free", cores(sample.capacity_cpu_millis - reserved)),
      row(h("span", { class: "swatch used", "aria-hidden": "true" }), "measured use", cores(used)),
      row(h("span", { class: "swatch limit", "aria-hidden": "true" }), "capacity", `${cores(sample.capacity_cpu_millis)} cores`),
    ]),
    seriesNames(samples, "services").map((name) => {
      const s = sample.services?.[name];
      return h("dl", { key: `s-${name}`, "data-readout": name }, [
        row(lineMark(samples, "services", name), h("strong", {}, name), s ? `${short(s.rate_per_s ?? 0)}/s` : "–"),
        s && row(lineMark(samples, "services", name, "dashed"), "p95", milliseconds(s.latency_ms_p95 ?? 0)),
        s && row("", "ready / wanted", `${s.ready ?? 0} / ${s.desired ?? 0}`),
      ]);
    }),
    seriesNames(samples, "trainings").map((name) => {
      const t = sample.trainings?.[name];
      return h("dl", { key: `t-${name}`, "data-readout": name }, [
        row(lineMark(samples, "trainings", name), h("strong", {}, name), t ? `${short(t.tokens_per_s ?? 0)} tok/s` : "–"),
        t && row(lineMark(samples, "trainings", name, "dashed"), "workers", number(t.world_size)),
        t && row("", "loss", number(t.loss, 3)),
      ]);
    }),
  ]);
}

const row = (mark, name, value) => h("div", {}, h("dt", {}, mark, name), h("dd", {}, value));

const lineMark = (samples, field, name, more = "") =>
  h("span", { class: `swatch line-mark ${lineClass(samples, field, name)} ${more}`, "aria-hidden": "true" });

// ------------------------------------------------------------------------------------ tables

function table(caption, heads, rows, empty) {
  return h("section", { key: caption, class: "card", "aria-label": caption }, [
    h("h2", {}, caption),
    rows.length === 0
      ? h("p", { class: "none" }, empty)
      : h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${caption} table` }, [
          h("table", { role: "table" }, [
            h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, heads.map(columnHead))),
            h("tbody", { role: "rowgroup" }, rows.map((r) => labelled(r, heads))),
          ]),
        ]),
  ]);
}

const columnHead = (title) =>
  h("th", { scope: "col", role: "columnheader", class: title.startsWith(">") ? "num" : "" }, title.replace(">", ""));

// On narrow screens rows are shown as blocks: cells then carry the column's title, and roles stay explicit.
function labelled(tr, heads) {
  tr.props.role = "row";
  tr.children.forEach((child, i) => {
    child.props["data-label"] = heads[i].replace(">", "");
    child.props.role = child.tag === "th" ? "rowheader" : "cell";
  });
  return tr;
}

const cell = (...content) => h("td", {}, content);
const num = (...content) => h("td", { class: "num" }, content);
const head = (...content) => h("th", { scope: "row" }, content);

function bar(label, capacity, reserved, used, format) {
  const share = (value) => (capacity > 0 ? Math.min(100, (100 * value) / capacity) : 0);
  return h("div", { class: "meter" }, [
    h("span", { class: "meter-text" }, h("b", {}, label), ` ${format(reserved)} reserved · ${format(used)} used · of ${format(capacity)}`),
    h("span", { class: "bar", role: "img", "aria-label": `${label}: ${Math.round(share(reserved))} % reserved, ${Math.round(share(used))} % used` }, [
      h("span", { class: "bar-reserved", "width%": share(reserved) }),
      h("span", { class: "bar-used", "width%": share(used) }),
    ]),
  ]);
}

export function machinesTable({ machines = [] }) {
  const rows = machines.map((m) =>
    h("tr", { key: m.name }, [
      head(m.name, h("div", { class: "sub" }, m.up ? (m.drain ? `◑ ${m.drain.text}` : "● up") : "○ down", ` · ${plural(m.num_tasks ?? 0, "task")} · ${m.isolation}`)),
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

// Amounts are in thousandths, memory in bytes, as the API has them.
const amount = (component, value) => (component === "memory" ? bytes(value) : `${number(value / 1000, value % 1000 ? 2 : 0)} ${component}`);
const amounts = (vector) => Object.entries(vector ?? {}).map(([c, v]) => amount(c, v)).join(", ") || "–";

// One row for each team and band; nothing at all where no quota is set.
export function teamsTable({ teams = [] }) {
  if (!teams.length) return null;
  const rows = teams.map((t) =>
    h("tr", { key: `${t.team}/${t.band}` }, [
      head(t.team, h("div", { class: "sub" }, t.cohort ? `cohort ${t.cohort}` : "")),
      cell(bandMark(t.band), t.band),
      cell(t.valid === false ? "none now" : amounts(t.own)),
      cell(amounts(t.used), t.borrowed && Object.keys(t.borrowed).length > 0 && h("div", { class: "sub" }, `borrows ${amounts(t.borrowed)}`)),
      cell(amounts(t.waiting)),
    ]),
  );
  return table("Teams", ["Team", "Band", "Quota", "Used", "Waiting"], rows, "");
}

const openButton = (job, open) =>
  h("button", { type: "button", class: "link", onclick: () => open(job.uid), "aria-label": `Details of ${job.name}` }, job.name);

export function servicesTable({ jobs = [] }, sample, open) {
  const rows = jobs
    .filter((j) => j.kind === "service" && !j.finished_s)
    .map((job) => {
      const s = sample?.services?.[job.name] ?? {};
      return h("tr", { key: job.uid }, [
        head(openButton(job, open), h("div", { class: "sub" }, (job.models ?? []).join(", "))),
        num(`${job.ready} / ${job.desired}`),
        num(`${short(s.rate_per_s ?? 0)}/s`),
        num(milliseconds(s.latency_ms_p50 ?? 0)),
        num(milliseconds(s.latency_ms_p95 ?? 0)),
        num(number(s.ongoing)),
        num(number(s.queued)),
        num(number(s.requests_total)),
        h("td", { class: s.failed_total ? "num bad" : "num" }, s.failed_total ? `✕ ${number(s.failed_total)}` : "0"),
      ]);
    });
  const heads = ["Service", ">Ready / wanted", ">Rate", ">p50", ">p95", ">In flight", ">Queued", ">Requests", ">Failed"];
  return table("Services", heads, rows, "No service runs. Try: tide serve MODEL");
}

function progress(job, sample) {
  const t = sample?.trainings?.[job.name];
  if (!t?.num_steps || job.finished_s) return null;
  const share = Math.min(100, (100 * (t.step ?? 0)) / t.num_steps);
  return h("div", { class: "meter" }, [
    h("span", { class: "meter-text" }, `step ${number(t.step)} of ${number(t.num_steps)} · loss ${number(t.loss, 3)}`),
    h("span", { class: "bar", role: "img", "aria-label": `${Math.round(share)} % done` }, h("span", { class: "bar-done", "width%": share })),
  ]);
}

function remark(job) {
  if (job.waiting) {
    const waits = job.waiting.reasons.map((r) => h("span", { class: "reason" }, r));
    return [waits, h("div", { class: "sub" }, job.waiting.detail ?? "")];
  }
  const text = job.message || job.desired_why || job.last_event || "";
  return h("div", { class: "sub" }, text);
}

export function jobsTable({ jobs = [] }, sample, open, nowS) {
  const order = (j) => [j.finished_s ? 1 : 0, -(j.finished_s || j.submitted_s)];
  const sorted = [...jobs].sort((a, b) => order(a)[0] - order(b)[0] || order(a)[1] - order(b)[1]);
  const rows = sorted.slice(0, 100).map((job) => {
    const since = job.finished_s || job.started_s || job.submitted_s;
    return h("tr", { key: job.uid, class: job.finished_s ? "over" : "" }, [
      head(openButton(job, open), h("div", { class: "sub" }, job.kind)),
      cell(stateMark(job.state), h("div", { class: "sub" }, `${duration(nowS - since)}${job.finished_s ? " ago" : ""}`)),
      cell(
        job.finished_s ? replicas(job.replicas) : `${job.running} of ${replicas(job.replicas)}`,
        !job.finished_s && job.desired !== job.running && h("div", { class: "sub" }, `wants ${job.desired}`),
      ),
      cell(bandMark(job.band), job.priority),
      h("td", { class: "wide" }, progress(job, sample), remark(job)),
    ]);
  });
  return table("Jobs", ["Job", "State", "Replicas", "Priority", "Progress, or why it waits"], rows, "Nothing was submitted yet. Try: tide run -- echo hello");
}

export function eventsTable({ events = [] }) {
  const rows = [...events].reverse().map((e) =>
    h("tr", { key: e.seq }, [
      h("td", { class: "time" }, h("time", { datetime: new Date(e.at_s * 1000).toISOString() }, clock(e.at_s))),
      cell(e.job ?? ""),
      h("td", { class: "wide" }, e.text || e.type),
    ]),
  );
  return table("Recent events", ["Time", "Run", "What happened"], rows, "Nothing happened yet.");
}
