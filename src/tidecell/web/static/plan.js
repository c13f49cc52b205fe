// The plan page: a spec in, what applying it would do out. The same answer as `tide plan`; nothing is committed.

import { h } from "./dom.js";
import { plural } from "./format.js";
import { card, cell, head, num, plainTable, reasons, sub, wide } from "./ui.js";

const EXAMPLE = "kind: job\nname: try\nrun: python train.py\nresources: {cpu: 2}\nreplicas: {min: 1, max: 4}\n";

export const plan = {
  name: "plan",
  title: "Plan",
  api: "POST /v1/plan",
  cli: "tide plan -f FILE",
  every: Infinity,
  still: Infinity,
  load: async () => ({}),
  view(_, ctx) {
    const { asking, view, error } = ctx.local;
    return card("Plan", [
      h("form", { onsubmit: (event) => ask(event, ctx) }, [
        h("label", { for: "spec" }, "What would happen if this spec were applied now? Nothing is committed."),
        h("textarea", { id: "spec", name: "spec", rows: "12", spellcheck: "false", placeholder: EXAMPLE, required: true }),
        h("button", { type: "submit", class: "small primary", disabled: asking }, asking ? "Asking …" : "Show the plan"),
      ]),
      h("div", { role: "status" }, error ? h("pre", { class: "note bad" }, error) : view ? answer(view) : h("p", { class: "none" }, "Type or paste a spec (docs/spec.md); with several, put --- between them.")),
    ]);
  },
};

async function ask(event, ctx) {
  event.preventDefault();
  const { local } = ctx;
  const spec = new FormData(event.target).get("spec");
  Object.assign(local, { asking: true, view: null, error: "" });
  ctx.render();
  try {
    local.view = await ctx.send("POST", "/v1/plan", spec, "application/yaml");
  } catch (error) {
    local.error = error.status ? error.message : "The control plane does not answer. Ask again when it is back.";
  }
  local.asking = false;
  ctx.render();
}

function answer(view) {
  return [
    h("p", {}, h("b", {}, view.starts ? "Everything starts now. " : "Not everything starts now. "), (view.changes ?? []).join("; ")),
    part("Starts", ["Job", ">Replica", "Machine"], view.placements, (p) => [head(p.job), num(p.index), cell(p.machine)]),
    part("Gives way", ["Job", ">Replica", "Machine", "What happens", "Loses"], view.victims, (v) => [
      head(v.job),
      num(v.index),
      cell(v.machine),
      cell(v.action === "shrink" ? `shrinks: ${plural(v.new_size, "replica")} remain${v.new_size === 1 ? "s" : ""}` : "is evicted"),
      wide(v.loses),
    ]),
    part("Waits", ["Job", ">Replicas", "For"], view.waits, (w) => [head(w.job), num(w.num_tasks ?? 1), wide(reasons(w.reasons), sub(w.detail))]),
    view.seq > 0 && h("p", { class: "sub" }, `Asked of the cell as it was at event ${view.seq}.`),
  ];
}

function part(title, heads, rows, line) {
  if (!rows?.length) return null;
  return [h("h3", {}, `${title} (${rows.length})`), plainTable(title, heads, rows.map((r, i) => h("tr", { key: i }, line(r))))];
}
