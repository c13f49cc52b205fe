// What surrounds every page: the header, the way to the pages, the banner of a silent cell, the form for a token.

import { h } from "./dom.js";
import { bytes, cores, duration, number, plural } from "./format.js";
import { href } from "./route.js";

// What was last known of a part says nothing once the control plane is silent.
function upDown(name, up, silent) {
  const [word, mark] = silent ? ["unknown", "?"] : up ? ["up", "●"] : ["down", "○"];
  return h("span", { class: `pill ${word}` }, h("span", { "aria-hidden": "true" }, mark), ` ${name} ${word}`);
}

const fact = (name, value, more = {}) => h("div", more, h("dt", {}, name), h("dd", {}, value));
const LESS = { "data-less": "" }; // not on a phone

export function header({ cell, machines, me, silent, nowS }) {
  const up = (machines ?? []).filter((m) => m.up);
  const sum = (part) => up.reduce((total, m) => total + (m.capacity?.[part] ?? 0), 0);
  const gpus = sum("gpu_millis") / 1000;
  return h("header", { class: "top", key: "header" }, [
    h("h1", {}, "tide", h("span", {}, "cell")),
    cell && [
      h("div", { class: "pills" }, upDown("agent", cell.agent_up, silent), upDown("router", cell.router_up, silent)),
      h("dl", { class: "facts" }, [
        machines && fact("capacity", [`${cores(sum("cpu_millis"))} cores · ${bytes(sum("memory_bytes"))}`, gpus > 0 && ` · ${plural(gpus, "accelerator")}`]),
        fact("epoch", number(cell.epoch), LESS),
        !silent && fact("up for", duration(nowS - cell.started_s)),
        fact("router", cell.router_url),
        fact("home", h("span", { title: cell.home }, cell.home), LESS),
        fact("version", cell.version, LESS),
        me && fact("you", `${me.name}, ${me.role}${me.team ? ` of ${me.team}` : ""}`),
      ]),
    ],
  ]);
}

export function navigation(pages, current, cell) {
  const badge = { queue: cell?.num_waiting };
  return h("nav", { key: "nav", class: "pages", "aria-label": "Pages" }, pages.map((page) =>
    h("a", { key: page.name, href: href({ page: page.name }), "aria-current": page === current ? "page" : undefined }, page.title, badge[page.name] > 0 && h("span", { class: "badge" }, number(badge[page.name])))));
}

export function banner({ failures, lastSeenMs, trouble }) {
  if (!failures) return null;
  // The age changes every second; only the rest is worth reading out.
  const ago = lastSeenMs > 0 && `Last seen ${duration((Date.now() - lastSeenMs) / 1000)} ago. `;
  const seen = h("span", { "aria-live": "off" }, ago);
  const silent = ["The control plane does not answer. ", seen, "Tasks and the router go on; it finds them again when it is back. Start it with ", h("code", {}, "tide up"), "."];
  const said = ["The control plane is in trouble. ", seen, trouble];
  return h("p", { key: "banner", class: "banner", role: "alert", "aria-atomic": "false" }, h("strong", {}, "⚠ "), trouble ? said : silent);
}

// Where the page's numbers come from: the same by API and by command line.
export const source = (page) =>
  h("footer", { key: "source", class: "source" }, ["The same by API: ", h("code", {}, page.api), " and by hand: ", h("code", {}, page.cli)]);

export function tokenForm(refused, enter) {
  return h("main", { key: "token", class: "token card" }, [
    h("h1", {}, "tide", h("span", {}, "cell")),
    refused && h("p", { class: "note bad", role: "alert" }, "The cell refused this token. It may have expired, been replaced, or be of another cell."),
    h("p", {}, "This console needs the cell's token. Print it with ", h("code", {}, "tide token"), ", or ask an admin for one of your own: ", h("code", {}, "tide user add NAME --role viewer"), "."),
    h("form", { onsubmit: enter }, [
      h("label", { for: "token" }, "Token"),
      h("input", { id: "token", name: "token", type: "password", autocomplete: "off", required: true }),
      h("button", { type: "submit" }, "Open the console"),
    ]),
  ]);
}
