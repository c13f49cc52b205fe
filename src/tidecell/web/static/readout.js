// The chart's legend, with the values at the cursor, or the newest ones.

import { lineClass, seriesNames } from "./chart.js";
import { h } from "./dom.js";
import { BANDS, clock, cores, milliseconds, number, short } from "./format.js";
import { bandMark } from "./ui.js";

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
