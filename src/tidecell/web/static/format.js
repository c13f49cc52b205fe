// Numbers and times in words.

export const BANDS = ["monitoring", "production", "batch", "best-effort"];

export const number = (value, digits = 0) =>
  (value ?? 0).toLocaleString("en", { maximumFractionDigits: digits });

// With so many digits as tell it apart from 0: for sums that may be tiny.
export const fine = (value) => (value ?? 0).toLocaleString("en", { maximumSignificantDigits: 3 });

export const cores = (millis) => number((millis ?? 0) / 1000, 2);

export function bytes(count) {
  let size = count ?? 0;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (Math.abs(size) < 1024) return `${number(size, unit === "B" ? 0 : 1)} ${unit}`;
    size /= 1024;
  }
  return `${number(size, 1)} TiB`;
}

export function short(value) {
  if (Math.abs(value) >= 1e6) return `${number(value / 1e6, 1)}M`;
  if (Math.abs(value) >= 1e4) return `${number(value / 1e3, 0)}k`;
  if (Math.abs(value) >= 1e3) return `${number(value / 1e3, 1)}k`;
  return number(value, Math.abs(value) < 10 ? 2 : 0);
}

export const milliseconds = (ms) => (ms >= 1000 ? `${number(ms / 1000, ms < 10000 ? 1 : 0)} s` : `${number(ms)} ms`);

export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export const clock = (at_s, withSeconds = true) =>
  new Date(at_s * 1000).toLocaleTimeString("en-GB", withSeconds ? {} : { hour: "2-digit", minute: "2-digit" });

export const replicas = (r) => (r.min === r.max ? `${r.min}` : `${r.min}..${r.max}`);

export const plural = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;

export const day = (at_s) => new Date(at_s * 1000).toLocaleDateString("sv-SE");

// A moment in the past or to come, in words.
export const ago = (at_s, nowS) => (at_s > nowS ? `in ${duration(at_s - nowS)}` : `${duration(nowS - at_s)} ago`);
