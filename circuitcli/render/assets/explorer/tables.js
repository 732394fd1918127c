// Tables of the side panel: numbers by name, and lists of nodes and edges that can be chosen.
import { choose } from "#choice";
import { nodes } from "#data";
import { html } from "#dom";
import { known, sign, signed, visible } from "#text";
import { reveal } from "#view";
import { aboutEdge, caption } from "#words";

export const cell = (text, kind) => html("td", { class: kind || null }, text);

export function rows(pairs) {
  const told = pairs.filter((pair) => known(pair[1]));
  return html(
    "table",
    {},
    told.map(([name, value]) => html("tr", {}, html("th", {}, name), html("td", {}, value))),
  );
}

export function numberCell(value, error, active) {
  const told = [
    known(error) ? "± " + Number(error.toPrecision(2)) : null,
    known(active) ? Math.round(100 * active) + " %" : null,
  ].filter(known);
  const number = html("span", { class: sign(value) }, signed(value));
  return html("td", { class: "number" }, number, told.length ? html("div", { class: "grey" }, told.join(", ")) : null);
}

// A line of a table about a node that leads to it.
export function nodeLine(node, attributes, ...cells) {
  const token = known(node.token) ? ` "${visible(node.token)}"` : "";
  const about = html("td", {}, node.id + token, html("div", { class: "grey" }, visible(caption(node)[0])));
  const line = html("tr", { class: "link", tabindex: 0, ...attributes }, cells, about);
  const go = () => {
    choose(node.id);
    reveal(node.id);
  };
  line.addEventListener("click", go);
  line.addEventListener("keydown", (event) => {
    if (event.key === "Enter") go();
  });
  return line;
}

export function edgeTable(title, list, end) {
  if (!list.length) return [html("h3", {}, title + ": none")];
  const lines = list.map((edge) => {
    const weight = numberCell(edge.weight, edge.standard_error, edge.active);
    return nodeLine(nodes.get(edge[end]), { title: aboutEdge(edge) }, weight, cell(edge.unit, "unit"));
  });
  return [html("h3", {}, `${title} (${list.length})`), html("table", {}, lines)];
}
