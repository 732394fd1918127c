// Where boxes stand: a row for each hook point, a column for each position. Boxes of one hook point and position fill a
// cell, on several lines if need be. Inputs are at the bottom and the output is on top; y grows downwards, in pixels.
import { circuit, layout } from "#data";
import { known } from "#text";

export const CARD = { width: 190, height: 56 };
const CARD_GAP = 18;
const LINE_GAP = 18;
const COLUMN_GAP = 26;
const ROW_GAP = 44;
const WIDEST_ROW_GAP = 110;
// Of names of hook points a character, as large as they are from afar, and the room beside them.
const HOOK_CHARACTER = 11.5;
const HOOK_GAP = 30;
const SKIP_WIDTH = 30;
// Below the rows: room, and a line for each of the alternatives of a position.
const TOKEN_GAP = 18;
const TOKEN_LINE = 22;
const ASPECT = 1.45;
const SWEEPS = 6;
// Edges by which boxes are ordered, so that they cross less.
const MOST_PULLS = 5000;

const SLOT = CARD.width + CARD_GAP;
const LINE = CARD.height + LINE_GAP;
// Every other line of a cell is shifted by half a card, so that edges pass between the cards above.
const SHIFT = SLOT / 2;

const OUTPUT = "output";
export const rowOf = (node) => node.hook || OUTPUT;

// Places of the boxes and the grid around them. `inOneColumn`: positions are not told apart.
export function arrange(nodes, { inOneColumn = false } = {}) {
  const cells = cellsOf(nodes, inOneColumn);
  for (const cell of cells) cell.nodes.sort((a, b) => rank(a) - rank(b));
  return packed(cells);
}

// The order of all boxes, found once, so that they keep it when some of them are hidden.
let ranks = null;
function rank(node) {
  ranks ||= ordered();
  if (!node.members) return ranks.get(node.id);
  return node.members.reduce((sum, id) => sum + ranks.get(id), 0) / node.members.length;
}

// Cells of rows from the lowest, each with its column.
function cellsOf(nodes, inOneColumn) {
  const order = new Map(layout.columns.map((column, index) => [column.position, index]));
  const column = (node) => (inOneColumn ? 0 : (order.get(known(node.position) ? node.position : null) ?? -1));
  const last = nodes.reduce((most, node) => Math.max(most, node.hook ? column(node) : -1), 0);
  const rows = new Map(layout.rows.map((row, index) => [row.hook, index]));
  const found = new Map();
  for (const node of nodes) {
    const at = node.hook ? Math.max(column(node), 0) : last;
    const row = rows.get(rowOf(node));
    const key = row * (layout.columns.length + 1) + at;
    if (!found.has(key)) found.set(key, { row, column: at, nodes: [], isWhole: inOneColumn });
    found.get(key).nodes.push(node);
  }
  return [...found.values()].sort((a, b) => a.row - b.row || a.column - b.column);
}

function packed(cells) {
  const perLine = perLineOf(cells);
  const columns = columnsOf(cells, perLine);
  const last = columns[columns.length - 1];
  const width = last ? last.x + last.width + COLUMN_GAP : left();
  const rows = rowsOf(cells, perLine, width);
  const places = new Map();
  const columnAt = new Map(columns.map((column) => [column.index, column]));
  const rowAt = new Map(rows.map((row) => [row.index, row]));
  for (const cell of cells) fill(places, cell, rowAt.get(cell.row), columnAt.get(cell.column), perLine);
  const bottom = rows.reduce((most, row) => Math.max(most, row.y + row.height), 0);
  const titles = columns.reduce((most, column) => Math.max(most, column.titles.length), 0);
  return { places, rows, columns, width, height: bottom + TOKEN_GAP + TOKEN_LINE * titles, bottom, left: left() };
}

const left = () => HOOK_GAP + HOOK_CHARACTER * layout.rows.reduce((most, row) => Math.max(most, row.hook.length), 0);

// Cards on one line of each column's cells so that the whole fits a screen as large as can be.
function perLineOf(cells) {
  const most = new Map();
  for (const cell of cells) most.set(cell.column, Math.max(most.get(cell.column) || 0, cell.nodes.length));
  const largest = Math.max(1, ...most.values());
  let best = null;
  for (let lines = 1; lines <= largest; lines++) {
    const perLine = new Map([...most].map(([column, count]) => [column, Math.ceil(count / lines)]));
    const size = sizeOf(cells, most, perLine);
    if (best === null || size < best.size) best = { perLine, size };
  }
  return best.perLine;
}

function sizeOf(cells, most, perLine) {
  let width = 0;
  for (const [column, count] of most) width += widthOf(count, perLine.get(column)) + COLUMN_GAP;
  let height = 0;
  for (const count of linesOf(cells, perLine).values()) height += count * LINE + ROW_GAP;
  return Math.max(width / ASPECT, height);
}

const widthOf = (count, perLine) => perLine * SLOT - CARD_GAP + (count > perLine ? SHIFT : 0);

// Lines of each row, by its number.
function linesOf(cells, perLine) {
  const lines = new Map();
  for (const cell of cells) {
    const count = Math.ceil(cell.nodes.length / perLine.get(cell.column));
    lines.set(cell.row, Math.max(lines.get(cell.row) || 0, count));
  }
  return lines;
}

function columnsOf(cells, perLine) {
  const most = new Map();
  for (const cell of cells) most.set(cell.column, Math.max(most.get(cell.column) || 0, cell.nodes.length));
  let x = left();
  let before = -1;
  return [...most.keys()]
    .sort((a, b) => a - b)
    .map((index) => {
      const { position, titles } = cells[0].isWhole ? { position: null, titles: [] } : layout.columns[index];
      const skipped = typeof position === "number" ? position - before - 1 : 0;
      x += skipped ? SKIP_WIDTH : 0;
      const width = widthOf(most.get(index), perLine.get(index));
      const column = { index, position, titles, skipped, x, width };
      x += width + COLUMN_GAP;
      before = typeof position === "number" ? position : -1;
      return column;
    });
}

// Rows from the highest; a wide picture has more room between them.
function rowsOf(cells, perLine, width) {
  const lines = [...linesOf(cells, perLine)].sort((a, b) => b[0] - a[0]);
  const cards = lines.reduce((sum, [, count]) => sum + count * LINE - LINE_GAP, 0);
  const gap = Math.min(Math.max((width / ASPECT - cards) / Math.max(lines.length, 1), ROW_GAP), WIDEST_ROW_GAP);
  let y = 0;
  return lines.map(([index, count]) => {
    const row = { ...layout.rows[index], index, y, height: count * LINE - LINE_GAP + gap, lines: count };
    y += row.height;
    return row;
  });
}

// Places of one cell's cards: lines of even length, each running through the whole order, in the row's middle. Lines of
// all cells of a row are level, so that edges can pass between them.
function fill(places, cell, row, column, perLine) {
  const ids = cell.nodes.map((node) => node.id);
  const lines = Math.ceil(ids.length / perLine.get(cell.column));
  const longest = Math.ceil(ids.length / lines);
  const top = row.y + (row.height - row.lines * LINE + LINE_GAP) / 2 + Math.floor((row.lines - lines) / 2) * LINE;
  for (let line = 0; line < lines; line++) {
    const onLine = ids.filter((_, index) => index % lines === line);
    let x = column.x + (column.width - onLine.length * SLOT + CARD_GAP) / 2;
    // A line that is one card shorter is shifted already, for it is centred.
    if (lines > 1 && onLine.length === longest) x += line % 2 ? SHIFT / 2 : -SHIFT / 2;
    for (const [slot, id] of onLine.entries()) places.set(id, [x + slot * SLOT, top + (lines - 1 - line) * LINE]);
  }
}

// Ranks after a few sweeps that move each card towards the mean of its neighbours, weighted by edge strength.
function ordered() {
  const cells = cellsOf(circuit.nodes, false);
  const pulls = neighbours();
  let { places } = packed(cells);
  for (let sweep = 0; sweep < SWEEPS; sweep++) {
    for (const cell of sweep % 2 ? cells.toReversed() : cells) {
      const wanted = new Map(cell.nodes.map((node) => [node, pull(node.id, pulls, places)]));
      cell.nodes.sort((a, b) => wanted.get(a) - wanted.get(b));
      const spots = cell.nodes.map((node) => places.get(node.id)).sort((a, b) => a[0] - b[0]);
      for (const [index, node] of cell.nodes.entries()) places.set(node.id, spots[index]);
    }
    ({ places } = packed(cells));
  }
  return new Map(cells.flatMap((cell) => cell.nodes.map((node, index) => [node.id, index])));
}

function neighbours() {
  const found = new Map();
  const pulling = circuit.edges.toSorted((a, b) => b.strength - a.strength).slice(0, MOST_PULLS);
  for (const { source, target, strength } of pulling) {
    for (const [one, other] of [
      [source, target],
      [target, source],
    ]) {
      if (!found.has(one)) found.set(one, []);
      found.get(one).push([other, strength]);
    }
  }
  return found;
}

// The x to which the card's edges draw it; its own where it has none.
function pull(id, pulls, places) {
  let total = 0;
  let sum = 0;
  for (const [other, strength] of pulls.get(id) || []) {
    total += strength;
    sum += places.get(other)[0] * strength;
  }
  return total > 0 ? sum / total : places.get(id)[0];
}
