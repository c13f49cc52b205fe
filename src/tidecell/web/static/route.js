// The part of the address behind the #: which page, with which choices, and the job whose details are open.

export function readRoute(hash = location.hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  const { details = "", ...params } = Object.fromEntries(new URLSearchParams(query));
  return { page: path.includes("=") ? "" : path, params, details };
}

export function href({ page, params = {}, details = "" }) {
  const chosen = Object.entries({ ...params, details }).filter(([, value]) => value);
  const query = new URLSearchParams(chosen).toString();
  return `#/${page}${query && `?${query}`}`;
}
