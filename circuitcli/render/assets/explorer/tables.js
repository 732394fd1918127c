// Tables of the side panel: numbers by name, and lists of nodes and edges that can be chosen.
import { choose, drawnFor, nodeOf } from "#choice";
import { html } from "#dom";
import { select } from "#groups";
import { current } from "#store";
import { known, sign, signed, visible } from "#text";
import { reveal } from "#view";
import { aboutEdge, caption } from "#words";

// Lines that are seen at once; the others open on demand.
const FEW = 25;
// A normal distribution has 95 % of its mass within so many standard errors.
const WIDTH_OF_95 = 1.96;

export const cell = (text, kind) => html("td", { class: kind || null }, text);

export function rows(pairs) {
  const told = pairs.filter((pair) => known(pair[1]));
  return html(
    "table",
    {},
    told.map(([name, value]) => html("tr", {}, html("th", {}, name), html("td", {}, value))),
  );
}

// Of a mean over prompts, from its standard error.
export function interval(value, error, unit) {
  return `${signed(value - WIDTH_OF_95 * error)} to ${signed(value + WIDTH_OF_95 * error, unit)}`;
}

export function numberCell(value, error, active) {
  const told = [known(error) ? interval(value, error) : null, known(active) ? Math.round(100 * active) + " %" : null];
  const number = html("span", { class: sign(value) }, signed(value));
  const below = told.filter(known).join(", ");
  return html("td", { class: "number" }, number, below ? html("div", { class: "grey" }, below) : null);
}

// A line of a table about a node that leads to it; with Shift it is selected.
export function nodeLine(node, attributes, ...cells) {
  const told = [known(node.token) ? `"${visible(node.token)}"` : "", visible(caption(node)[0])].filter(Boolean);
  const name = node.members ? `${node.members.length} nodes` : visible(node.id);
  const about = html("td", {}, name, html("div", { class: "grey" }, told.join(" · ")));
  const line = html("tr", { class: "link", tabindex: 0, "data-line": node.id, ...attributes }, cells, about);
  const go = (event) => {
    if (event.shiftKey) return select(node.id);
    choose(node.id);
    reveal(drawnFor(node.id));
  };
  line.addEventListener("click", (event) => {
    if (!event.target.closest("button")) go(event);
  });
  line.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target === line) go(event);
  });
  return line;
}

export function edgeTable(title, list, end) {
  if (!list.length) return [html("h3", {}, title + ": nothing")];
  const drawn = new Set(current().shown);
  const lines = list.map((edge) => {
    const weight = numberCell(edge.weight, edge.standard_error, edge.active);
    const hidden = drawn.has(edge) ? null : { class: "link undrawn" };
    const about = { title: aboutEdge(edge) + (hidden ? "\nnot drawn" : ""), ...hidden };
    return nodeLine(nodeOf(edge[end]), about, weight, cell(edge.unit, "unit"));
  });
  const table = html("table", {}, lines.slice(0, FEW + 1 < lines.length ? FEW : lines.length));
  const rest = FEW + 1 < lines.length ? [more(lines.slice(FEW))] : [];
  return [html("h3", {}, `${title} (${list.length})`), table, ...rest];
}

function more(lines) {
  return html("details", {}, html("summary", {}, `${lines.length} more`), html("table", {}, lines));
}
