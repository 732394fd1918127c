// The weights of a few edges, written where no box lies under them.
import { CARD } from "#arrange";
import { svg } from "#dom";
import { curves, pointOf } from "#routes";
import { current } from "#store";
import { sign, signed } from "#text";

// Edges whose weights are written.
const FEW = 24;
const HEIGHT = 14;
const CHARACTER = 7;
// Places along an edge, from where its weight should stand outwards.
const TRIES = [0, -0.06, 0.06, -0.12, 0.12, -0.18, 0.18, -0.24, 0.24, -0.3, 0.3, -0.4, 0.4];

const layer = svg("g");
export const weights = () => layer;

// `at`: the node from which they are looked at.
export function writeWeights(edges, wayOf, at) {
  const told = at === undefined && edges.length > FEW ? [] : edges.slice(0, FEW);
  const taken = [];
  layer.replaceChildren(...told.map((edge) => weight(edge, wayOf(edge), { at, taken })).filter(Boolean));
}

function weight(edge, way, { at, taken }) {
  const text = signed(edge.weight);
  // From afar letters are larger, see drawing.css.
  const scale = current().view.zoom < 0.66 ? 1.8 : 1;
  const [width, height] = [text.length * CHARACTER * scale, HEIGHT * scale];
  const preferred = edge.target === at ? 0.3 : 0.7;
  const spots = TRIES.map((step) => along(way, Math.min(Math.max(preferred + step, 0.05), 0.95)));
  const spot = spots.find(([x, y]) => isFree({ x, y, width, height }, taken));
  if (!spot) return null;
  const [x, y] = spot;
  taken.push({ x, y, width, height });
  return svg("text", { class: "weight " + sign(edge.weight), x, y: y + height / 3 }, text);
}

// The point at a share of the height of an edge.
function along(way, share) {
  const parts = curves(way);
  const total = way[0][1] - way[way.length - 1][1];
  const y = way[0][1] - share * total;
  const part = parts.find(([, , , end]) => end[1] <= y) || parts[parts.length - 1];
  const height = part[0][1] - part[3][1];
  return pointOf(part, height > 0 ? (part[0][1] - y) / height : 0.5);
}

function isFree(label, taken) {
  const meets = (x, y, width, height) =>
    Math.abs(label.x - x) < (label.width + width) / 2 && Math.abs(label.y - y) < (label.height + height) / 2;
  if (taken.some(({ x, y, width, height }) => meets(x, y, width, height))) return false;
  for (const [x, y] of current().placed.places.values()) {
    if (meets(x + CARD.width / 2, y + CARD.height / 2, CARD.width, CARD.height)) return false;
  }
  return true;
}
