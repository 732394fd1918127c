// What the page carries: the document of render/document.py, and where things stand.
import { get } from "#dom";

const content = JSON.parse(get("data").textContent);

export const { document: circuit, layout, facts, reading, conditions, kinds, metric } = content;
export const nodes = new Map(circuit.nodes.map((node) => [node.id, node]));
// The weakest first, so that strong ones lie on top.
export const edges = circuit.edges.slice().sort((a, b) => a.strength - b.strength);
export const edgeName = (edge) => `${edge.source}→${edge.target}`;
// Edges by node id, the strongest first.
export const incoming = new Map();
export const outgoing = new Map();
for (const id of nodes.keys()) {
  incoming.set(id, []);
  outgoing.set(id, []);
}
edges.forEach((edge, order) => {
  edge.order = order;
  incoming.get(edge.target).unshift(edge);
  outgoing.get(edge.source).unshift(edge);
});
export const largestEffect = circuit.nodes.reduce((most, node) => Math.max(most, Math.abs(node.effect || 0)), 0);
