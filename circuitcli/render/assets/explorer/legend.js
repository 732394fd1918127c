// What widths and colours say.
import { circuit, kinds, largestEffect, reading } from "#data";
import { get, html, svg } from "#dom";
import { number, sign, signed } from "#text";

export function legend() {
  const scales = circuit.scales.map((scale) => html("tr", {}, html("td", {}, scale.unit), scale.samples.map(sample)));
  const strip = ` Strip at the left of a box: effect, full colour at ${number(largestEffect)}.`;
  const note = html("div", { class: "note" }, reading + (largestEffect > 0 ? strip : ""));
  get("legend").append(html("table", {}, scales), ...boxes(), note);
}

function sample({ weight, width, opacity }) {
  const look = {
    stroke: `var(--${sign(weight)})`,
    "stroke-width": width,
    "stroke-opacity": opacity,
    "stroke-dasharray": weight < 0 ? "7 4" : null,
  };
  const line = svg("line", { x1: 0, x2: 42, y1: 5, y2: 5, ...look });
  return [
    html("td", {}, svg("svg", { width: 42, height: 10, "aria-hidden": "true" }, line)),
    html("td", { class: "sample" }, signed(weight)),
  ];
}

function boxes() {
  const there = Object.keys(kinds);
  if (there.length < 2) return [];
  const names = there.map((kind) => html("span", { class: `of-${kind.replace(/\W+/g, "-")}` }, kind));
  return [html("div", { class: "kinds" }, names)];
}
