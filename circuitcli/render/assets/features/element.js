// Elements of these pages, beside those of every page.
import { fill, get, html } from "#dom";

export { get, html };

const SVG = "http://www.w3.org/2000/svg";
export const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

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
