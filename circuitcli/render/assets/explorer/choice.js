// Which node is pinned, and what the pointer is at.
import { circuit, incoming, nodes, outgoing } from "#data";
import { current, set } from "#store";

export function choose(id) {
  set({ chosen: id !== null && nodes.has(id) ? id : null, focus: null });
}

// A node with its drawn edges and what they lead to.
export function around(id) {
  const shown = new Set(current().shown);
  const edges = [...incoming.get(id), ...outgoing.get(id)].filter((edge) => shown.has(edge));
  return { at: id, edges, nodes: new Set([id, ...edges.flatMap((edge) => [edge.source, edge.target])]) };
}

export function pointAtNode(id) {
  if (!current().chosen) set({ focus: around(id) });
}

export function pointAtEdge(edge) {
  if (!current().chosen) set({ focus: { at: null, edges: [edge], nodes: new Set([edge.source, edge.target]) } });
}

export function pointAtPosition(position) {
  const there = circuit.nodes.filter((node) => node.position === position).map((node) => node.id);
  set({ chosen: null, focus: { at: null, edges: [], nodes: new Set(there) } });
}

export const pointAtNothing = () => set({ focus: null });

// What is lit: what the pointer is at, or else the pinned node with its edges, or null.
export function lit() {
  const { chosen, focus } = current();
  return focus || (chosen && around(chosen));
}
