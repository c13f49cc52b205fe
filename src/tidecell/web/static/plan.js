// The plan box: a spec in, what applying it would do out. The same answer as `tide plan`; nothing is committed.

import { h } from "./dom.js";
import { plural } from "./format.js";

const EXAMPLE = "kind: job\nname: try\nrun: python train.py\nresources: {cpu: 2}\nreplicas: {min: 1, max: 4}\n";

export function planCard({ asking, view, error }, submit) {
  return h("section", { key: "plan", class: "card plan", "aria-label": "Plan" }, [
    h("h2", {}, "Plan"),
    h("form", { onsubmit: submit }, [
      h("label", { for: "spec" }, "What would happen if this spec were applied now? Nothing is committed."),
      h("textarea", { id: "spec", name: "spec", rows: "7", spellcheck: "false", placeholder: EXAMPLE }),
      h("button", { type: "submit", disabled: asking }, asking ? "Asking …" : "Show the plan"),
    ]),
    h("div", { role: "status" }, error ? h("pre", { class: "note bad" }, error) : view && answer(view)),
  ]);
}

function answer(view) {
  return [
    h("p", {}, h("b", {}, view.starts ? "Everything starts now. " : "Not everything starts now. "), (view.changes ?? []).join("; ")),
    part("Starts", view.placements, (p) => `${p.job} replica ${p.index} on ${p.machine}`),
    part("Gives way", view.victims, (v) =>
      `${v.job} replica ${v.index} on ${v.machine}: ${v.action === "shrink" ? `${plural(v.new_size, "replica")} remain${v.new_size === 1 ? "s" : ""}` : "evicted"}, loses ${v.loses}`),
    part("Waits", view.waits, (w) => [h("b", {}, w.job), " ", w.reasons.map((r) => h("span", { class: "reason" }, r)), h("span", { class: "sub" }, ` ${w.detail}`)]),
  ];
}

function part(title, rows, line) {
  return rows?.length ? [h("h4", {}, title), h("ul", {}, rows.map((r) => h("li", {}, line(r))))] : null;
}
