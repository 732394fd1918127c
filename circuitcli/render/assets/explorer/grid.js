// Rows of hook points, and columns of positions with their tokens.
import { kinds, layout } from "#data";
import { svg } from "#dom";
import { known } from "#text";

export function grid() {
  return svg("g", {}, layout.rows.map(row), layout.columns.map(column));
}

function row({ hook, y, height, kind, shaded }) {
  const ink = kind ? kinds[kind][1] : "#2c7a2c";
  return [
    shaded ? svg("rect", { class: "band", x: 0, y, width: layout.width, height }) : null,
    svg("text", { class: "hook", x: 8, y: y + height / 2 + 4, fill: ink }, hook),
  ];
}

function column({ position, x, width, skipped, titles }) {
  const { bottom, height } = layout;
  const parts = [];
  if (skipped) {
    const title = svg("title", {}, skipped + " positions without nodes");
    parts.push(svg("text", { class: "skip", x: x - 28, y: bottom + 20 }, "⋯", title));
  }
  if (!known(position)) return parts;
  parts.push(svg("line", { class: "column", x1: x - 13, x2: x - 13, y1: 0, y2: height }));
  titles.forEach((title, line) => {
    parts.push(svg("text", { class: "place", x: x + width / 2, y: bottom + 18 + 22 * line }, title));
  });
  return parts;
}
