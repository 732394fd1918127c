// Bands of hook points and lines of columns; their names stay in sight, at the left and at the bottom, however far one
// looks.
import { svg } from "#dom";
import { subscribe } from "#store";
import { known, shortened } from "#text";

// Pixels on the screen: of letters, of lines, and between names and what they name.
const CHARACTER = 6.6;
const LINE = 15;
const GAP = 8;
const bands = svg("g");
const names = svg("g", { id: "names" });

export const grid = () => {
  subscribe(["placed"], ({ placed }) => bands.replaceChildren(...bandsOf(placed), ...linesOf(placed)), true);
  subscribe(["placed", "view", "size"], write, true);
  return bands;
};

export const gridNames = () => names;

// What names take up of the stage.
export function margins({ rows, columns }) {
  const longest = rows.reduce((most, row) => Math.max(most, row.hook.length), 0);
  const lines = columns.reduce((most, column) => Math.max(most, column.titles.length), 0);
  return { left: longest * 7.6 + 2 * GAP, bottom: lines * LINE + (lines ? 2 * GAP : GAP) };
}

function bandsOf({ rows, width }) {
  return rows
    .filter((row) => row.shaded)
    .map(({ y, height }) => svg("rect", { class: "band", x: 0, y, width, height }));
}

function linesOf({ columns, height }) {
  return columns
    .filter((column) => known(column.position))
    .map(({ x }) => svg("line", { class: "column", x1: x - 13, x2: x - 13, y1: 0, y2: height }));
}

function write({ placed, view, size }) {
  const { left, bottom } = margins(placed);
  const y = Math.min(placed.bottom * view.zoom + view.y, size.height - bottom) + GAP + LINE - 4;
  names.replaceChildren(
    ...backs(left, y, size),
    ...rowNames(placed, view),
    ...placed.columns.flatMap((column) => columnNames(column, view, y)),
  );
}

// What lies under names is faint, so that they can be read.
function backs(left, y, { width, height }) {
  const top = y - LINE - GAP;
  const beside = svg("rect", { class: "back", width: Math.max(left - GAP, 0), height: Math.max(top, 0) });
  return [beside, svg("rect", { class: "back", y: top, width, height: Math.max(height - top, 0) })];
}

// Names of rows that are too near to the one before are left out.
function rowNames({ rows }, { y: top, zoom }) {
  let before = -Infinity;
  return rows.flatMap(({ hook, y, height, kind }) => {
    const middle = (y + height / 2) * zoom + top + 4;
    if (middle - before < 12) return [];
    before = middle;
    const about = kind ? `hook of-${kind.replace(/\W+/g, "-")}` : "hook";
    return [svg("text", { class: about, x: GAP, y: middle }, hook)];
  });
}

function columnNames({ x, width, skipped, titles }, view, y) {
  const room = Math.floor(((width + 20) * view.zoom) / CHARACTER);
  const [middle, begin] = [(x + width / 2) * view.zoom + view.x, x * view.zoom + view.x];
  const lines = room < 3 ? [] : titles.map((title) => shortened(title, room));
  const parts = lines.map((text, line) => svg("text", { class: "place", x: middle, y: y + LINE * line }, text));
  if (!skipped || room < 3) return parts;
  const title = svg("title", {}, skipped + " positions without nodes");
  return [svg("text", { class: "skip", x: begin - 28 * view.zoom, y }, "⋯", title), ...parts];
}
