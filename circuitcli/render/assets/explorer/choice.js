// Which node is pinned, and what the pointer is at.
import { nodes } from "#data";
import { current, set } from "#store";

// A node by its id: of the circuit, or one of those that are drawn for several.
export const nodeOf = (id) => nodes.get(id) || current().boxes.find((node) => node.id === id) || null;

export function choose(id) {
  set({ chosen: id !== null && nodeOf(id) ? id : null, focus: null });
}

let neighbours = new Map();
let neighboursOf = null;

// A node with its drawn edges, the strongest first, and what they lead to.
export function around(id) {
  const { shown } = current();
  if (neighboursOf !== shown) neighbours = byEnd(shown);
  neighboursOf = shown;
  const edges = neighbours.get(id) || [];
  return { at: id, edges, nodes: new Set([id, ...edges.flatMap((edge) => [edge.source, edge.target])]) };
}

function byEnd(edges) {
  const found = new Map();
  for (const edge of edges.toReversed()) {
    for (const id of [edge.source, edge.target]) {
      if (!found.has(id)) found.set(id, []);
      found.get(id).push(edge);
    }
  }
  return found;
}

export function pointAtNode(id) {
  if (!current().chosen) set({ focus: around(id) });
}

export function pointAtEdge(edge) {
  if (!current().chosen) set({ focus: { at: null, edges: [edge], nodes: new Set([edge.source, edge.target]) } });
}

export function pointAtPosition(position) {
  const there = current().boxes.filter((node) => node.position === position);
  set({ chosen: null, focus: { at: null, edges: [], nodes: new Set(there.map((node) => node.id)) } });
}

export function pointAtNothing() {
  if (current().focus) set({ focus: null });
}

// What is drawn for a node: itself, or the box of its group.
export function drawnFor(id) {
  return current().boxes.find((node) => node.id === id || node.members?.includes(id))?.id ?? id;
}

// What is lit: what the pointer is at, or else the pinned node with its edges, or null.
export function lit() {
  const { chosen, focus } = current();
  return focus || (chosen && around(drawnFor(chosen)));
}
