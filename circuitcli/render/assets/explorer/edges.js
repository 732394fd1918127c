// A line for each strong edge, with a wider one that the pointer finds; of weak edges only those that are lit.
import { choose, lit, pointAtEdge, pointAtNothing } from "#choice";
import { edgeName } from "#data";
import { svg } from "#dom";
import { curves, plain, routes } from "#routes";
import { current, subscribe } from "#store";
import { sign } from "#text";
import { hideTip, showTip } from "#tip";
import { writeWeights } from "#weights";
import { aboutEdge } from "#words";

// Edges that are elements of their own; weaker ones are drawn by haze.js.
const MOST = 500;
const MOST_PRINTED = 5000;
// Among more boxes there is no way around them that one could follow.
const MOST_BOXES = 250;
const drawn = new Map();
const strongLayer = svg("g", { id: "edges" });
const weakLayer = svg("g");
let ways = new Map();
let onPage = new Set();

export const limit = () => (current().printing ? MOST_PRINTED : MOST);
export const strongest = (shown) => shown.slice(-limit());
export const weaker = (shown) => shown.slice(0, -limit());

export function lines() {
  subscribe(["placed", "shown", "printing"], place, true);
  subscribe(["chosen", "focus", "placed", "printing"], light, true);
  return svg("g", {}, strongLayer, weakLayer);
}

export function markers() {
  return svg("defs", {}, marker("positive"), marker("negative"));
}

function marker(kind) {
  const head = svg("path", { d: "M0,0L6,3L0,6z", class: "head " + kind });
  const size = { viewBox: "0 0 6 6", refX: 4, refY: 3, markerUnits: "userSpaceOnUse", markerWidth: 9, markerHeight: 9 };
  return svg("marker", { id: kind, ...size, orient: "auto" }, head);
}

function place({ shown, placed }) {
  const strong = strongest(shown);
  ways = placed.places.size > MOST_BOXES ? new Map() : routes(strong, placed);
  onPage = new Set(strong);
  for (const edge of drawn.keys()) if (!onPage.has(edge)) drawn.delete(edge);
  strongLayer.replaceChildren(...strong.flatMap(partsOf));
}

function partsOf(edge) {
  if (!drawn.has(edge)) drawn.set(edge, line(edge));
  const d = path(wayOf(edge));
  for (const part of drawn.get(edge)) part.setAttribute("d", d);
  return drawn.get(edge);
}

const wayOf = (edge) => ways.get(edge) || plain(edge, current().placed.places);

function path(points) {
  const rounded = ([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`;
  const parts = curves(points).map(([, ...controls]) => "C" + controls.map(rounded).join(" "));
  return `M${rounded(points[0])}${parts.join("")}`;
}

function line(edge) {
  const kind = sign(edge.weight);
  const headed = edge.strength >= 0.1 ? " headed" : "";
  const look = { class: `edge ${kind}${headed}`, "stroke-width": edge.width, "stroke-opacity": edge.opacity };
  const reach = svg("path", { class: "reach" });
  reach.addEventListener("pointerenter", (event) => {
    pointAtEdge(edge);
    showTip(event, aboutEdge(edge));
  });
  reach.addEventListener("pointerleave", () => {
    hideTip();
    pointAtNothing();
  });
  reach.addEventListener("click", () => choose(edge.target));
  return [svg("path", { ...look, "data-edge": edgeName(edge) }), reach];
}

let wasLit = [];
function light() {
  const now = lit();
  for (const part of wasLit) part.classList.remove("on");
  const strong = now ? now.edges.slice(0, limit()) : [];
  weakLayer.replaceChildren(...strong.filter((edge) => !onPage.has(edge)).flatMap(partsOf));
  wasLit = strong.flatMap((edge) => drawn.get(edge) || []);
  for (const part of wasLit) part.classList.add("on");
  writeWeights(now ? strong : current().shown, wayOf, now?.at);
}
