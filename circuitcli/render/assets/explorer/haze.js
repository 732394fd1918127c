// Weak edges, which are too many for elements of their own, on a canvas under the boxes: a part of them each frame, so
// that the page stays quick.
import { get } from "#dom";
import { weaker } from "#edges";
import { curves, plain } from "#routes";
import { current, subscribe } from "#store";

const EACH_FRAME = 4000;
const SHADES = 4;
// Of more edges than these each is fainter, so that where many run can be told from where few do.
const FULL = 1500;
let job = 0;
const colours = new Map();

export function haze() {
  subscribe(["placed", "view", "size"], restart);
  subscribe(["theme", "printing"], recolour);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  restart();
}

function recolour() {
  colours.clear();
  restart();
}

function restart() {
  cancelAnimationFrame(job);
  job = requestAnimationFrame(begin);
}

function begin() {
  const edges = weaker(current().shown);
  const canvas = get("haze");
  const ratio = window.devicePixelRatio || 1;
  const { size } = current();
  const [width, height] = [Math.round(size.width * ratio), Math.round(size.height * ratio)];
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const pen = canvas.getContext("2d");
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, width, height);
  const { x, y, zoom } = current().view;
  pen.setTransform(ratio * zoom, 0, 0, ratio * zoom, ratio * x, ratio * y);
  const ink = {
    positive: colour("positive"),
    negative: colour("negative"),
    width: 0.8 / zoom,
    share: Math.min(1, Math.sqrt(FULL / edges.length)),
  };
  go(pen, edges, { ink, from: edges.length });
}

// The strongest first: they are seen first.
function go(pen, edges, { ink, from }) {
  const first = Math.max(0, from - EACH_FRAME);
  for (const [look, batch] of batches(edges.slice(first, from))) stroke(pen, batch, look, ink);
  if (first > 0) job = requestAnimationFrame(() => go(pen, edges, { ink, from: first }));
}

// Edges that look the same are one line of many pieces.
function batches(edges) {
  const found = new Map();
  for (const edge of edges) {
    const shade = Math.min(Math.floor(edge.opacity * SHADES), SHADES - 1);
    const look = (edge.weight < 0 ? -1 : 1) * (shade + 1);
    if (!found.has(look)) found.set(look, []);
    found.get(look).push(edge);
  }
  return found;
}

function stroke(pen, edges, look, ink) {
  const { places } = current().placed;
  pen.beginPath();
  for (const edge of edges) {
    const [[start, one, other, end]] = curves(plain(edge, places));
    pen.moveTo(start[0], start[1]);
    pen.bezierCurveTo(one[0], one[1], other[0], other[1], end[0], end[1]);
  }
  pen.strokeStyle = look < 0 ? ink.negative : ink.positive;
  pen.globalAlpha = (ink.share * (Math.abs(look) - 0.5)) / SHADES;
  pen.lineWidth = ink.width;
  pen.stroke();
}

// What a colour of the styles is now, in light or dark.
function colour(name) {
  if (!colours.has(name)) colours.set(name, getComputedStyle(get("canvas").querySelector(`.head.${name}`)).fill);
  return colours.get(name);
}
