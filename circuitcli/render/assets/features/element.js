// Elements. Text from outside reaches a page through textContent and attributes only, never as markup.
const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== "") element.append(child);
  }
  return element;
}

export const html = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
export const get = (id) => document.getElementById(id);

// Part of a page with a heading; nothing where nothing is in it.
export function section(name, title, ...children) {
  const inside = children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== "");
  return inside.length ? html("section", { "data-section": name }, html("h2", {}, title), inside) : null;
}

export function table(heads, rows, attributes) {
  const head = html(
    "tr",
    {},
    heads.map((text) => html("th", { scope: "col" }, text)),
  );
  const body = rows.map((cells) =>
    html(
      "tr",
      {},
      cells.map((cell) => html("td", {}, cell)),
    ),
  );
  return html("table", attributes, html("thead", {}, head), html("tbody", {}, body));
}

export function button(text, title, act, attributes) {
  const made = html("button", { type: "button", title, ...attributes }, text);
  made.addEventListener("click", act);
  return made;
}

export function painted() {
  document.documentElement.dataset.ready = "1";
}
