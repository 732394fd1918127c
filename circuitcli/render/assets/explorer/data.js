// What the page carries: the document of render/document.py as render/packing.py packs it, and the rows and columns of
// boxes. Every number of the document is here.
import { get } from "#dom";

const content = JSON.parse(get("data").textContent);

export const { layout, facts, reading, conditions, kinds, metric, noun, outcome, state } = content;
export const circuit = unpacked(content.packed);
export const nodes = new Map(circuit.nodes.map((node) => [node.id, node]));
// The weakest first, so that strong ones lie on top.
export const edges = circuit.edges.toSorted((a, b) => a.strength - b.strength);
export const edgeName = (edge) => `${edge.source}→${edge.target}`;
// Edges by node id, the strongest first.
export const incoming = new Map();
export const outgoing = new Map();
for (const id of nodes.keys()) {
  incoming.set(id, []);
  outgoing.set(id, []);
}
for (let order = edges.length - 1; order >= 0; order--) {
  incoming.get(edges[order].target).push(edges[order]);
  outgoing.get(edges[order].source).push(edges[order]);
}
export const largestEffect = circuit.nodes.reduce((most, node) => Math.max(most, Math.abs(node.effect || 0)), 0);

function unpacked({ details, nodes: nodeTable, edges: edgeTable, drawn_edges: drawn, ...rest }) {
  const all = rows(nodeTable);
  for (const node of all) node.details = details[node.feature] || null;
  const largest = new Map(rest.scales.map((scale) => [scale.unit, scale.largest]));
  const links = rows(edgeTable);
  for (const edge of links) {
    edge.source = all[edge.source].id;
    edge.target = all[edge.target].id;
    edge.drawn = false;
    Object.assign(edge, ink(Math.abs(edge.weight), largest.get(edge.unit)));
  }
  for (const index of drawn) links[index].drawn = true;
  return { ...rest, nodes: all, edges: links };
}

// A table by columns; a column of one value holds it for all rows.
function rows({ length, columns }) {
  const names = Object.keys(columns);
  return Array.from({ length }, (_, index) => {
    const row = {};
    for (const name of names) row[name] = columns[name].length === 1 ? columns[name][0] : columns[name][index];
    return row;
  });
}

// How strong an edge is drawn; the same as render/scales.py.
function ink(size, largest) {
  const strength = largest > 0 ? Math.min(size / largest, 1) : 0;
  const share = Math.sqrt(strength);
  return { strength, opacity: 0.12 + (1 - 0.12) * share, width: 0.6 + (4 - 0.6) * share };
}
