// A page as a function of what is known: h() describes elements, patch() changes the document to match.
// Elements are reused by key, so focus, scroll positions and selections survive an update every second.
// Text always becomes text nodes: nothing from the API is ever parsed as HTML.

const SVG_NAMESPACE = "http://www.w3.org/2000/svg";

export function h(tag, props, ...children) {
  const kept = children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false && c !== "");
  return { tag, props: props ?? {}, children: kept.map((c) => (typeof c === "object" ? c : String(c))) };
}

export function patch(parent, children) {
  const wanted = new Set(children.map((c) => c.props?.key));
  const keyed = new Map();
  const loose = [];
  for (const node of [...parent.childNodes]) {
    if (node.tideKey === undefined) loose.push(node);
    else if (wanted.has(node.tideKey)) keyed.set(node.tideKey, node);
    else node.remove(); // first, so that the others need not move (moving an element takes its focus)
  }
  let place = parent.firstChild;
  for (const child of children) {
    const node = reuse(child, keyed, loose) ?? create(child, parent);
    if (node === place) place = place.nextSibling;
    else parent.insertBefore(node, place);
    if (typeof child === "string") {
      if (node.data !== child) node.data = child;
    } else {
      setProps(node, child.props);
      patch(node, child.children);
    }
  }
  for (const node of [...keyed.values(), ...loose]) node.remove();
}

function reuse(child, keyed, loose) {
  const name = typeof child === "string" ? "#text" : child.tag;
  const key = child.props?.key;
  if (key !== undefined) {
    const node = keyed.get(key);
    if (node?.nodeName.toLowerCase() !== name) return null;
    keyed.delete(key);
    return node;
  }
  const at = loose.findIndex((node) => node.nodeName.toLowerCase() === name.toLowerCase());
  return at < 0 ? null : loose.splice(at, 1)[0];
}

function create(child, parent) {
  if (typeof child === "string") return document.createTextNode(child);
  const inSvg = child.tag === "svg" || parent.namespaceURI === SVG_NAMESPACE;
  const node = inSvg ? document.createElementNS(SVG_NAMESPACE, child.tag) : document.createElement(child.tag);
  if (child.props.key !== undefined) node.tideKey = child.props.key;
  return node;
}

function setProps(node, props) {
  const old = node.tideProps ?? {};
  for (const name of Object.keys(old)) if (!(name in props)) setProp(node, name, undefined);
  for (const [name, value] of Object.entries(props)) if (value !== old[name]) setProp(node, name, value);
  node.tideProps = props;
}

function setProp(node, name, value) {
  if (name === "key") return;
  if (name.startsWith("on")) node[name] = value ?? null;
  else if (name === "width%") node.style.width = value === undefined ? "" : `${value}%`;
  else if (value === undefined || value === false || value === null) node.removeAttribute(name);
  else node.setAttribute(name, value === true ? "" : value);
}
