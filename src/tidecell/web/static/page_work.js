// Pages about work: the queue, jobs, services, dev sessions.

import { h } from "./dom.js";
import { ago, bytes, duration, milliseconds, number, replicas, short } from "./format.js";
import { bandMark, cell, choice, command, field, filters, head, num, openButton, pager, reasons, stateMark, sub, table, wide } from "./ui.js";
import { whyParts } from "./why.js";

const PAGE_SIZE = 50;
const WHY_MS = 10000;
const BANDS = [["", "any"], "monitoring", "production", "batch", "best-effort"];

const listPath = (params, fixed) => {
  const { team, band, kind, text, state, offset } = params;
  const query = { team, band, kind, text, state, offset, limit: PAGE_SIZE, brief: 1, ...fixed };
  return `/v1/jobs?${new URLSearchParams(Object.entries(query).filter(([, v]) => v))}`;
};

// ------------------------------------------------------------------------------------ queue

export const queue = {
  name: "queue",
  title: "Queue",
  api: "/v1/jobs?state=waiting, /v1/jobs/NAME/why",
  cli: "tide queue, tide why NAME",
  every: 2000,
  still: 10000,
  async load({ get }, { params, local }) {
    const list = await get(listPath(params, { state: "waiting" }));
    // An answer costs the cell a look at the whole queue for each thing it tries, so it is kept for a while.
    const old = (uid) => local.open?.has(uid) && !(performance.now() - local.open.get(uid).askedMs < WHY_MS);
    await Promise.all(list.items.filter((j) => old(j.uid)).map((j) => askWhy(get, j.uid, local)));
    return list;
  },
  view(list, ctx) {
    const rows = list.items.flatMap((job) => queueRows(job, ctx));
    const heads = [">#", "Job", "Team", "Priority", "Replicas", "Waits for", "Since", "Why"];
    const { params } = ctx;
    const before = filters("Filter the queue", [choice("band", "Band", BANDS, params.band ?? ""), field("team", "Team", params.team), field("text", "Name", params.text)], ctx);
    const filtered = params.band || params.team || params.text;
    const empty = filtered ? "Nothing that waits is like that. Take the filter back to see all." : "Nothing waits: every job has what it asked for. Try: tide plan -f FILE, to see what would.";
    return table("Queue", heads, rows, empty, { before, more: pager(list.total, PAGE_SIZE, ctx) });
  },
};

async function askWhy(get, uid, local) {
  const askedMs = performance.now();
  const answer = { askedMs };
  try {
    answer.why = await get(`/v1/jobs/${encodeURIComponent(uid)}/why`, 30000);
  } catch (error) {
    if (error.status === undefined || error.status === 401) throw error;
    answer.error = error.message;
  }
  if (local.open.has(uid)) local.open.set(uid, answer);
}

function queueRows(job, ctx) {
  ctx.local.open ??= new Map();
  const opened = ctx.local.open.get(job.uid);
  const toggle = () => {
    if (opened) ctx.local.open.delete(job.uid);
    else ctx.local.open.set(job.uid, {});
    ctx.reload();
  };
  const missing = job.waiting?.num_tasks ?? 0;
  const row = h("tr", { key: job.uid }, [
    num(job.position ? number(job.position) : "–"),
    head(openButton(job, ctx.open), sub(job.kind)),
    cell(job.team ?? "", job.team && job.team_position > 0 && sub(`place ${job.team_position} in the team`)),
    cell(bandMark(job.band), job.priority),
    cell(`${job.running} of ${replicas(job.replicas)}`, missing > 0 && sub(`${number(missing)} wait`)),
    wide(reasons(job.waiting?.reasons), sub(job.waiting?.detail ?? "")),
    cell(duration(ctx.nowS - job.submitted_s)),
    cell(h("button", { type: "button", class: "small", "aria-expanded": String(Boolean(opened)), onclick: toggle, "aria-label": `Why ${job.name} waits` }, opened ? "Hide" : "Why")),
  ]);
  if (!opened) return [row];
  const text = opened.error ? h("p", { class: "note bad" }, opened.error) : opened.why ? whyParts(opened.why, ctx) : "Asking the scheduler …";
  return [row, h("tr", { key: `why-${job.uid}`, class: "detail" }, h("td", { colspan: "8", class: "wide why" }, text))];
}

// ------------------------------------------------------------------------------------- jobs

export const jobs = {
  name: "jobs",
  title: "Jobs",
  api: "/v1/jobs?limit=50&offset=0",
  cli: "tide ps -a",
  every: 2000,
  still: 10000,
  load: ({ get }, { params }) => get(listPath(params, { state: params.state || "any" })),
  view(list, ctx) {
    const { params } = ctx;
    const before = filters("Filter jobs", [
      choice("state", "State", [["", "all"], "live", "running", "waiting", "over"], params.state ?? ""),
      choice("kind", "Kind", [["", "any"], "job", "service", "dev", "alloc"], params.kind ?? ""),
      choice("band", "Band", BANDS, params.band ?? ""),
      field("team", "Team", params.team),
      field("text", "Name", params.text),
    ], ctx);
    const filtered = ["state", "kind", "band", "team", "text"].some((name) => params[name]);
    const empty = filtered ? "No job is like that. Take the filter back to see all." : NOTHING;
    return jobsTable(list, {}, ctx, { before, more: pager(list.total, PAGE_SIZE, ctx), empty });
  },
};

const NOTHING = "Nothing was submitted yet. Try: tide run -- echo hello";

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
  if (job.waiting) return [reasons(job.waiting.reasons), sub(job.waiting.detail ?? "")];
  if (job.array && !job.finished_s) return sub(Object.entries(job.array.counts).map(([state, n]) => `${number(n)} ${state.toLowerCase()}`).join(", "));
  return sub(job.update?.text || job.message || job.desired_why || job.last_event || "");
}

export function jobsTable({ items = [] }, sample, ctx, { before, more, empty = NOTHING } = {}) {
  const rows = items.map((job) => {
    const since = job.finished_s || job.started_s || job.submitted_s;
    return h("tr", { key: job.uid, class: job.finished_s ? "over" : "" }, [
      head(openButton(job, ctx.open), sub([job.schedule ? "schedule" : job.kind, job.team].filter(Boolean).join(" of "))),
      cell(stateMark(job.state), sub(`${duration(ctx.nowS - since)}${job.finished_s ? " ago" : ""}`)),
      cell(
        job.finished_s || job.schedule ? replicas(job.replicas) : `${job.running} of ${replicas(job.replicas)}`,
        !job.finished_s && !job.schedule && job.desired !== job.running && sub(`wants ${job.desired}`),
      ),
      cell(bandMark(job.band), job.priority),
      wide(progress(job, sample), remark(job)),
    ]);
  });
  return table("Jobs", ["Job", "State", "Replicas", "Priority", "Progress, or why it waits"], rows, empty, { before, more });
}

// --------------------------------------------------------------------------------- services

export const services = {
  name: "services",
  title: "Services",
  api: "/v1/jobs?kind=service, /v1/jobs/NAME/history, /v1/series",
  cli: "tide status NAME, tide history NAME",
  every: 1000,
  still: 2000,
  async load({ get, items, loadSeries }) {
    const [list] = await Promise.all([items("/v1/jobs?kind=service&brief=1"), loadSeries()]);
    const changed = list.filter((j) => j.version > 1 || j.update);
    const histories = await Promise.all(changed.map((j) => get(`/v1/jobs/${encodeURIComponent(j.uid)}/history`)));
    return { list, histories: Object.fromEntries(changed.map((j, i) => [j.uid, histories[i].items])) };
  },
  view: ({ list, histories }, ctx) => [servicesTable(list, ctx.newest, ctx), versionsTable(list, histories, ctx)],
};

export function servicesTable(list, sample, ctx) {
  const rows = list.map((job) => {
    const s = sample?.services?.[job.name] ?? {};
    return h("tr", { key: job.uid }, [
      head(openButton(job, ctx.open), sub((job.models ?? []).join(", "))),
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

const PHASES = { canary: "◔ canary", rolling: "◑ rolling", halted: "✕ halted" };

export const updateText = (update) =>
  [h("span", { class: update.phase === "halted" ? "bad" : "" }, PHASES[update.phase] ?? update.phase), ` to version ${update.version}: ${update.healthy} healthy, ${update.old} old`];

export function budgetText({ max_unavailable, down = 0, spare = 0 }) {
  const more = spare > 0 ? `${spare} more may go` : spare < 0 ? "more than allowed: failures count too" : "none may go now";
  return `${down} away, at most ${max_unavailable}: ${more}`;
}

function versionsTable(list, histories, ctx) {
  const rows = list.map((job) => {
    const known = histories[job.uid] ?? [];
    const good = known.filter((v) => v.stable && v.number !== job.version).at(-1);
    return h("tr", { key: job.uid }, [
      head(openButton(job, ctx.open)),
      num(number(job.version)),
      wide(job.update ? [updateText(job.update), sub(job.update.text)] : "everywhere"),
      cell(job.disruptions ? budgetText(job.disruptions) : "no budget set"),
      wide(good ? [`version ${good.number}`, command(`tide rollback ${job.name} ${good.number}`, ctx)] : sub("no earlier healthy version")),
    ]);
  });
  return table("Versions and budgets", ["Service", ">Version", "Update", "Disruption budget", "Back to"], rows, "With a service running, its version, update and disruption budget stand here. Change one: tide apply -f FILE");
}

// --------------------------------------------------------------------------------- sessions

export const sessions = {
  name: "sessions",
  title: "Sessions",
  api: "/v1/jobs?kind=dev",
  cli: "tide dev, tide attach NAME",
  every: 2000,
  still: 5000,
  load: ({ items }) => items("/v1/jobs?kind=dev"),
  view(list, ctx) {
    const rows = list.map((job) => {
      const task = (job.tasks ?? []).find((t) => t.pid);
      return h("tr", { key: job.uid }, [
        head(openButton(job, ctx.open), sub([job.team, job.labels?.user].filter(Boolean).join(", "))),
        cell(stateMark(job.state), job.waiting && reasons(job.waiting.reasons)),
        cell(task?.machine ?? "–", job.alloc && sub(`in alloc ${job.alloc}`)),
        cell(idleText(job, ctx.nowS)),
        cell(task ? `${number((task.cpu_millis ?? 0) / 1000, 2)} cores, ${bytes(task.memory_bytes)}` : "–"),
        wide(command(`tide attach ${job.name}`, ctx)),
      ]);
    });
    return table("Dev sessions", ["Session", "State", "Machine", "Last used", "Uses", "Come back"], rows, "No session runs. Start a shell in the cell: tide dev");
  },
};

export function idleText(job, nowS) {
  const limit = job.idle_timeout_s;
  const rule = limit ? `ends after ${duration(limit)} without use` : "never ends for being idle";
  if (!job.last_used_s) return [job.started_s ? "not told yet" : "has not started", sub(rule)];
  const idleS = nowS - job.last_used_s;
  const last = idleS < 15 ? "in use" : ago(job.last_used_s, nowS);
  return [last, sub(limit && idleS >= 15 ? `ends ${ago(Math.max(nowS + 1, job.last_used_s + limit), nowS)} if nobody uses it` : rule)];
}
