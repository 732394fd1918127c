// How edges run: from card to card, and beside those that lie between, so that long edges stay visible.
import { CARD } from "#arrange";

// Room between an edge and a card that it passes, and between two edges in one gap.
const MARGIN = 5;
const SPACING = 4;
// Places that are tried on either side, and what a turn costs, as a way across.
const MOST_SHIFTS = 40;
const TURN = 90;
// Of a card's width, what its edges leave free on either side.
const INSET = 0.12;
// Arrow heads end below the card.
const HEAD = 4;
// A curve bends over this share of its height.
const BEND = 0.45;
const LEAST_BEND = 30;
// Points of a curve for each line of cards that it passes.
const SAMPLES = 8;
const NONE = [];

// For each edge the points that it runs through, from its source to its target. An edge that would run under cards
// passes the lines of cards in their gaps, straight up, with few turns: it has two more points for each turn. Strong
// edges are placed first; of those in one gap each has its own place as long as there is room.
export function routes(edges, { places, left, width }) {
  const leaves = ports(edges, places, "source", "target");
  const reaches = ports(edges, places, "target", "source");
  const bands = bandsOf(places, left, width);
  const found = new Map();
  for (const edge of edges.toSorted((a, b) => b.strength - a.strength)) {
    const start = [leaves.get(edge), places.get(edge.source)[1]];
    const end = [reaches.get(edge), places.get(edge.target)[1] + CARD.height + HEAD];
    const passed = bands.filter((band) => band.bottom < start[1] && band.top > end[1]);
    found.set(edge, [start, ...(runsUnder(start, end, passed) ? beside(passed, start, end) : []), end]);
  }
  return found;
}

// A plain way for edges that are too many to be routed: out of and into a card on the side of its other end.
export function plain(edge, places) {
  const [x0, y0] = places.get(edge.source);
  const [x1, y1] = places.get(edge.target);
  const lean = ((1 - 2 * INSET) / 2) * Math.tanh((x1 - x0) / (4 * CARD.width));
  const start = [x0 + CARD.width * (0.5 + lean), y0];
  return [start, [x1 + CARD.width * (0.5 - lean), y1 + CARD.height + HEAD]];
}

// How far up a curve goes straight on before it turns.
export function bendOf(y0, y1, isAlone) {
  const size = Math.abs(y0 - y1) * BEND;
  return isAlone ? Math.max(LEAST_BEND, size) : size;
}

// Curves that begin and end straight up, as four points each.
export function curves(points) {
  return points.slice(1).map(([x, y], index) => {
    const [x0, y0] = points[index];
    const bend = bendOf(y0, y, points.length === 2);
    return [
      [x0, y0],
      [x0, y0 - bend],
      [x, y + bend],
      [x, y],
    ];
  });
}

// The point of a curve at t, 0 to 1.
export function pointOf([p, q, r, s], t) {
  const u = 1 - t;
  const [a, b, c, d] = [u ** 3, 3 * u * u * t, 3 * u * t * t, t ** 3];
  return [a * p[0] + b * q[0] + c * r[0] + d * s[0], a * p[1] + b * q[1] + c * r[1] + d * s[1]];
}

// Where each edge leaves its source or reaches its target: side by side, in the order of their other ends.
function ports(edges, places, end, other) {
  const groups = new Map();
  for (const edge of edges) {
    if (!groups.has(edge[end])) groups.set(edge[end], []);
    groups.get(edge[end]).push(edge);
  }
  const found = new Map();
  for (const [id, group] of groups) {
    const [x] = places.get(id);
    group.sort((a, b) => places.get(a[other])[0] - places.get(b[other])[0]);
    const step = (1 - 2 * INSET) / (group.length + 1);
    for (const [index, edge] of group.entries()) found.set(edge, x + CARD.width * (INSET + step * (index + 1)));
  }
  return found;
}

// Cards that lie beside one another, from the lowest to the highest: what they take up across, and what is free.
function bandsOf(places, left, right) {
  const lines = new Map();
  for (const [x, y] of places.values()) {
    if (!lines.has(y)) lines.set(y, []);
    lines.get(y).push(x);
  }
  return [...lines]
    .sort((a, b) => b[0] - a[0])
    .map(([top, xs]) => {
      const taken = merged(xs);
      const ends = [left - MARGIN, ...taken.flat(), right];
      const gaps = [];
      for (let index = 0; index < ends.length; index += 2) {
        if (ends[index + 1] >= ends[index]) gaps.push([ends[index], ends[index + 1]]);
      }
      return { top, bottom: top + CARD.height, taken, gaps, used: new Map() };
    });
}

// Intervals with their margins, those that touch made one.
function merged(xs) {
  const found = [];
  for (const x of xs.toSorted((a, b) => a - b)) {
    const last = found[found.length - 1];
    if (last && x - MARGIN <= last[1]) last[1] = x + CARD.width + MARGIN;
    else found.push([x - MARGIN, x + CARD.width + MARGIN]);
  }
  return found;
}

// The free place of a band nearest to x, the one on the left of two.
function nearest({ gaps }, x) {
  let low = 0;
  let high = gaps.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (gaps[middle][1] < x) low = middle + 1;
    else high = middle;
  }
  if (high < 0) return x;
  // The first gap that does not end before x; the one before it ends before.
  const right = Math.min(Math.max(x, gaps[low][0]), gaps[low][1]);
  if (low === 0 || right === x) return right;
  const left = gaps[low - 1][1];
  return x - left <= Math.abs(right - x) ? left : right;
}

// Whether the plain curve meets a card, or comes too near to one.
function runsUnder(start, end, bands) {
  const [curve] = curves([start, end]);
  const steps = SAMPLES * bands.length;
  let [x0, y0] = start;
  for (let step = 1; step <= steps; step++) {
    const [x, y] = pointOf(curve, step / steps);
    const [left, right, top, bottom] = [Math.min(x0, x), Math.max(x0, x), Math.min(y0, y), Math.max(y0, y)];
    for (const band of bands) {
      if (bottom <= band.top || top >= band.bottom) continue;
      if (band.taken.some(([begin, end]) => begin < right && left < end)) return true;
    }
    [x0, y0] = [x, y];
  }
  return false;
}

// Two points for each run of bands that the edge passes straight up: below the first and above the last of them.
function beside(bands, start, end) {
  const wanted = ways(bands, start[0], end[0]);
  const points = [];
  for (let first = 0; first < bands.length; ) {
    let last = first;
    while (last + 1 < bands.length && wanted[last + 1] === wanted[first]) last++;
    const x = free(wanted[first], bands.slice(first, last + 1));
    points.push([x, bands[first].bottom], [x, bands[last].top]);
    first = last + 1;
  }
  return points;
}

// Where each band is passed, so that turns and ways across cost least; all places are in gaps. Looked at in each band
// are the free places nearest to both ends, and nearest to those of the other bands.
function ways(bands, start, end) {
  const wanted = new Set([start, end]);
  for (const band of bands) wanted.add(nearest(band, start)).add(nearest(band, end));
  let best = [{ x: start, cost: 0, before: null }];
  for (const band of bands) {
    const found = new Set([...wanted].map((x) => nearest(band, x)));
    best = cheapest(
      best,
      [...found].sort((a, b) => a - b),
    );
  }
  let last = best.reduce((a, b) => (a.cost + turn(a.x, end) <= b.cost + turn(b.x, end) ? a : b));
  const places = [];
  for (; last.before !== null; last = last.before) places.unshift(last.x);
  return places;
}

const turn = (before, after) => (before === after ? 0 : TURN + Math.abs(after - before));

// The cheapest way to each x from places before, both from left to right. One sweep from each side finds it, as a turn
// costs the same wherever it is.
function cheapest(before, xs) {
  const found = xs.map((x) => ({ x, cost: Infinity, before: null }));
  const sweep = (steps, olds, sign) => {
    let nearestOld = null;
    let index = 0;
    for (const step of steps) {
      for (; index < olds.length && sign * olds[index].x <= sign * step.x; index++) {
        const old = olds[index];
        if (nearestOld === null || old.cost - sign * old.x <= nearestOld.cost - sign * nearestOld.x) nearestOld = old;
        if (old.x === step.x && old.cost < step.cost) Object.assign(step, { cost: old.cost, before: old });
      }
      const cost = nearestOld === null ? Infinity : nearestOld.cost + turn(nearestOld.x, step.x);
      if (cost < step.cost) Object.assign(step, { cost, before: nearestOld });
    }
  };
  sweep(found, before, 1);
  sweep(found.toReversed(), before.toReversed(), -1);
  return found;
}

// The place nearest to what is wanted that is free in all bands and that no edge has yet; else what is wanted.
function free(wanted, bands) {
  for (let step = 0; step < MOST_SHIFTS; step++) {
    for (const x of [wanted + SPACING * step, wanted - SPACING * step]) {
      if (!bands.every((band) => nearest(band, x) === x && hasRoom(band.used, x))) continue;
      for (const band of bands) take(band.used, x);
      return x;
    }
  }
  return wanted;
}

// Taken places by slots as wide as two edges stand apart.
const slotOf = (x) => Math.floor(x / SPACING);

function take(used, x) {
  const slot = slotOf(x);
  if (!used.has(slot)) used.set(slot, []);
  used.get(slot).push(x);
}

function hasRoom(used, x) {
  const slot = slotOf(x);
  for (let near = slot - 1; near <= slot + 1; near++) {
    for (const other of used.get(near) || NONE) if (Math.abs(x - other) < SPACING - 1e-9) return false;
  }
  return true;
}
