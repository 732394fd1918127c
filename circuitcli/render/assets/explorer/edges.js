// A line for each edge, with a wider one that the pointer finds, and the weights of a few.
import { choose, lit, pointAtEdge, pointAtNothing } from "#choice";
import { edgeName, edges } from "#data";
import { svg } from "#dom";
import { path } from "#geometry";
import { current, subscribe } from "#store";
import { sign, signed } from "#text";
import { hideTip, showTip } from "#tip";
import { aboutEdge } from "#words";

// Edges whose weights are written.
const FEW = 24;
const drawn = new Map();
const weights = svg("g");

export function lines() {
  const layer = svg("g");
  for (const edge of edges) {
    const parts = line(edge);
    drawn.set(edge, parts);
    layer.append(...parts);
  }
  subscribe(["shown"], ({ shown }) => hide(new Set(shown)));
  subscribe(["chosen", "focus", "shown"], light);
  return layer;
}

export const numbers = () => weights;

export function markers() {
  return svg("defs", {}, marker("positive"), marker("negative"));
}

function marker(kind) {
  const head = svg("path", { d: "M0,0L6,3L0,6z", fill: `var(--${kind})`, "fill-opacity": 0.75 });
  const size = { viewBox: "0 0 6 6", refX: 4, refY: 3, markerUnits: "userSpaceOnUse", markerWidth: 9, markerHeight: 9 };
  return svg("marker", { id: kind, ...size, orient: "auto" }, head);
}

function line(edge) {
  const d = path(edge);
  const kind = sign(edge.weight);
  const headed = edge.strength >= 0.1 ? " headed" : "";
  const look = { class: `edge ${kind}${headed}`, d, "stroke-width": edge.width, "stroke-opacity": edge.opacity };
  const reach = svg("path", { class: "reach", d });
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

function hide(shown) {
  for (const [edge, parts] of drawn) for (const part of parts) part.style.display = shown.has(edge) ? "" : "none";
}

let wasLit = [];
function light() {
  const now = lit();
  for (const part of wasLit) part.classList.remove("on");
  wasLit = now ? now.edges.flatMap((edge) => drawn.get(edge)) : [];
  for (const part of wasLit) part.classList.add("on");
  const { shown } = current();
  const told = now
    ? now.edges
        .slice()
        .sort((a, b) => b.strength - a.strength)
        .slice(0, FEW)
    : shown;
  weights.replaceChildren(...(told.length <= FEW ? told.map((edge) => weight(edge, now?.at)) : []));
}

function weight(edge, at) {
  const [drawnLine] = drawn.get(edge);
  const along = edge.target === at ? 0.3 : 0.7;
  const { x, y } = drawnLine.getPointAtLength(drawnLine.getTotalLength() * along);
  return svg("text", { class: "weight " + sign(edge.weight), x, y }, signed(edge.weight));
}
