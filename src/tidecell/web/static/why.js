// Why a job waits: all that `tide why` says, with the commands ready to copy.

import { h } from "./dom.js";
import { clock, day, duration, plural } from "./format.js";
import { command, reasons, resources, sub } from "./ui.js";

export function whyParts(why, ctx) {
  const { nowS } = ctx;
  const parts = [
    why.reasons?.length && h("p", {}, reasons(why.reasons), why.detail),
    why.shrunk && h("p", {}, why.shrunk),
    why.message && h("p", {}, why.message),
    why.position > 0 && h("p", {}, h("b", {}, "place "), place(why)),
    why.needs && h("p", {}, h("b", {}, "needs "), why.needs),
    why.free_now && h("p", {}, h("b", {}, "free now "), why.free_now),
    why.holders?.length && [h("h4", {}, "Held by"), h("ul", { class: "holders" }, why.holders.map((x) => holder(x, nowS)))],
    why.fixes?.length && fixes(runs(why) ? "One more would start now if" : "It would start now if", why.fixes, "fixes", ctx),
    why.no_help?.length && fixes("Would not help", why.no_help, "no-help", ctx),
    expected(why, nowS),
  ].filter(Boolean);
  const rests = ["RUNNING", "SUCCEEDED"].includes(why.state);
  if (!parts.length) parts.push(h("p", { class: "none" }, rests ? "Nothing holds it back." : "The cell gives no reason."));
  return [parts, why.seq > 0 && h("p", { class: "sub" }, `Asked of the cell as it was at event ${why.seq}.`)];
}

const runs = (why) => ["STARTING", "RUNNING", "RESIZING"].includes(why.state);

const place = (why) =>
  `${why.position} of ${why.num_waiting || why.position} that wait${why.team ? `, ${why.team_position} of team ${why.team}` : ""}`;

function holder(x, nowS) {
  const until = x.ends_by_s ? `, ends within ${duration(x.ends_by_s - nowS)}` : "";
  const team = x.team ? ` of ${x.team}` : "";
  return h("li", {}, h("b", {}, x.job), ` (${x.priority})${team} ${plural(x.num_tasks, "task")} on ${x.machine}, ${resources(x.resources)}, runs ${duration(x.running_s ?? 0)}${x.leaving ? ", leaving" : ""}${until}`);
}

function fixes(title, list, name, ctx) {
  const line = (fix) => h("li", {}, fix.change, command(fix.command, ctx), fix.effect && sub(fix.effect));
  return [h("h4", {}, title), h("ul", { class: name }, list.map(line))];
}

function expected(why, nowS) {
  const range = why.start_range;
  const at = (s) => (Math.abs(s - nowS) > 43200 ? `${day(s)} ${clock(s, false)}` : clock(s, false));
  return [
    range && h("p", {}, h("b", {}, "otherwise about "), `${at(range.expected_s)}${at(range.earliest_s) === at(range.latest_s) ? "" : ` (${at(range.earliest_s)} to ${at(range.latest_s)})`}, if work goes on as similar work did`),
    why.expected_s > 0 && h("p", {}, h("b", {}, range ? "at the latest " : "otherwise at the latest "), `${at(why.expected_s)}, in ${duration(why.expected_s - nowS)}`, why.expected_why && `, ${why.expected_why}`),
    !range && !why.expected_s && why.reasons?.length > 0 && h("p", { class: "sub" }, "When it starts otherwise is not known."),
  ].filter(Boolean);
}
