// Building blocks that several pages use: marks, tables, bars, commands to copy, filters, pages of a list.

import { h } from "./dom.js";
import { bytes, cores, number } from "./format.js";

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

export const bandMark = (band) => h("span", { class: `swatch band-${band}`, "aria-hidden": "true" });

export const sub = (...content) => h("div", { class: "sub" }, content);

export const reasons = (list) => (list ?? []).map((r) => h("span", { class: "reason" }, r));

export const openButton = (job, open) =>
  h("button", { type: "button", class: "link", onclick: () => open(job.uid), "aria-label": `Details of ${job.name}` }, job.name);

// ------------------------------------------------------------------------------------ tables

export const cell = (...content) => h("td", {}, content);
export const num = (...content) => h("td", { class: "num" }, content);
export const head = (...content) => h("th", { scope: "row" }, content);
export const wide = (...content) => h("td", { class: "wide" }, content);

const columnHead = (title) =>
  h("th", { scope: "col", role: "columnheader", class: title.startsWith(">") ? "num" : "" }, title.replace(">", ""));

// On narrow screens rows are shown as blocks: cells then carry the column's title, and roles stay explicit.
function labelled(tr, heads) {
  tr.props.role = "row";
  tr.children.forEach((child, i) => {
    child.props["data-label"] = (heads[i] ?? "").replace(">", "");
    child.props.role = child.tag === "th" ? "rowheader" : "cell";
  });
  return tr;
}

export function plainTable(name, heads, rows) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${name} table` }, [
    h("table", { role: "table" }, [
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, heads.map(columnHead))),
      h("tbody", { role: "rowgroup" }, rows.map((r) => labelled(r, heads))),
    ]),
  ]);
}

// A card with a table; `empty` says what to do where there are no rows, `more` stands below.
export function table(caption, heads, rows, empty, { before, more, aside } = {}) {
  return card(caption, [before, rows.length === 0 ? h("p", { class: "none" }, empty) : plainTable(caption, heads, rows), more], aside);
}

export const card = (caption, content, aside) =>
  h("section", { key: caption, class: "card", "aria-label": caption }, [
    aside ? h("div", { class: "card-head" }, h("h2", {}, caption), aside) : h("h2", {}, caption),
    content,
  ]);

// ------------------------------------------------------------------------------ amounts and bars

// Amounts of a quota are in thousandths, memory in bytes, as the API has them.
const amount = (component, value) => (component === "memory" ? bytes(value) : `${number(value / 1000, value % 1000 ? 2 : 0)} ${component}`);
export const amounts = (vector) => Object.entries(vector ?? {}).map(([c, v]) => amount(c, v)).join(", ") || "–";

// A vector of resources in words.
export function resources(r) {
  const parts = [
    r?.gpu_millis && `${number(r.gpu_millis / 1000, 2)} gpu`,
    r?.cpu_millis && `${cores(r.cpu_millis)} cpu`,
    r?.memory_bytes && bytes(r.memory_bytes),
  ].filter(Boolean);
  return parts.join(", ") || "nothing";
}

export function bar(label, capacity, reserved, used, format, words = ["reserved", "used"]) {
  const share = (value) => (capacity > 0 ? Math.max(0, Math.min(100, (100 * value) / capacity)) : 0);
  const known = used === null ? "" : ` · ${format(used)} ${words[1]}`;
  const spoken = used === null ? "" : `, ${Math.round(share(used))} % ${words[1]}`;
  return h("div", { class: "meter" }, [
    h("span", { class: "meter-text" }, h("b", {}, label), ` ${format(reserved)} ${words[0]}${known} · of ${format(capacity)}`),
    h("span", { class: "bar", role: "img", "aria-label": `${label}: ${Math.round(share(reserved))} % ${words[0]}${spoken}` }, [
      h("span", { class: "bar-reserved", "width%": share(reserved) }),
      used !== null && h("span", { class: "bar-used", "width%": share(used) }),
    ]),
  ]);
}

// -------------------------------------------------------------------------------- commands

// A command as one would type it, with a button that copies it. `ctx.copied` is what was copied last.
export function command(text, ctx) {
  if (!text) return null;
  return h("div", { class: "command-row" }, [
    h("code", { class: "command" }, text),
    h("button", { type: "button", class: "small", onclick: () => ctx.copy(text), "aria-label": `Copy: ${text}` }, ctx.copied === text ? "Copied" : "Copy"),
  ]);
}

// ------------------------------------------------------------------------- filters and pages

// A line of choices; a change goes to the address, so that it can be linked to.
export function filters(label, fields, ctx) {
  const chosen = (event) => {
    event.preventDefault();
    const form = event.currentTarget;
    ctx.go({ ...ctx.params, ...Object.fromEntries(new FormData(form)), offset: "", before: "" });
  };
  return h("form", { class: "filters", role: "search", "aria-label": label, onchange: chosen, onsubmit: chosen }, fields);
}

export function choice(name, label, options, value) {
  const list = options.map((o) => (Array.isArray(o) ? o : [o, o]));
  return h("label", { key: name }, h("span", {}, label), [
    h("select", { name }, list.map(([v, text]) => h("option", { key: v, value: v, selected: v === value }, text))),
  ]);
}

export const field = (name, label, value, more = {}) =>
  h("label", { key: name }, h("span", {}, label), h("input", { name, type: "search", value: value ?? "", autocomplete: "off", ...more }));

export function pager(total, limit, ctx) {
  const offset = Number(ctx.params.offset || 0);
  if (total <= limit && !offset) return null;
  const to = (value) => () => ctx.go({ ...ctx.params, offset: value ? String(value) : "" });
  return h("nav", { class: "pager", "aria-label": "Pages of the list" }, [
    h("button", { type: "button", class: "small", disabled: offset === 0, onclick: to(Math.max(0, offset - limit)) }, "← Previous"),
    h("span", { role: "status" }, `${number(total ? offset + 1 : 0)} to ${number(Math.min(total, offset + limit))} of ${number(total)}`),
    h("button", { type: "button", class: "small", disabled: offset + limit >= total, onclick: to(offset + limit) }, "Next →"),
  ]);
}
