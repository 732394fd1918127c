// Nodes and edges from the first to the last, by size or by influence on the output.
import { circuit, incoming } from "#data";
import { known } from "#text";

const rankings = new Map();

// { nodes, edges }: [{ item, size }] by falling size; sizes of what is always kept are infinite.
export function ranking(by) {
  if (!rankings.has(by)) rankings.set(by, by === "influence" ? byInfluence() : byEffect());
  return rankings.get(by);
}

function byEffect() {
  return {
    nodes: falling(circuit.nodes, (node) => (known(node.effect) && node.hook ? Math.abs(node.effect) : Infinity)),
    edges: falling(circuit.edges, (edge) => edge.strength),
  };
}

function byInfluence() {
  const { ofNodes, ofEdges } = influence();
  return {
    nodes: falling(circuit.nodes, (node) => (node.hook ? ofNodes.get(node.id) : Infinity)),
    edges: falling(circuit.edges, (edge) => ofEdges.get(edge)),
  };
}

function falling(items, sizeOf) {
  return items.map((item) => ({ item, size: sizeOf(item) })).sort((a, b) => b.size - a.size);
}

// How much each node and edge matters to the output by way of all paths, as graphs/influence.py has it: what goes into a
// node is shared among its edges by |weight|, from the last node to the first.
function influence() {
  const ofNodes = new Map(circuit.nodes.map((node) => [node.id, 0]));
  const ofEdges = new Map();
  for (const node of circuit.nodes.toReversed()) {
    const into = incoming.get(node.id);
    const total = into.reduce((sum, edge) => sum + Math.abs(edge.weight), 0);
    const mass = ofNodes.get(node.id) + ownWeight(node);
    for (const edge of into) {
      const share = (mass * Math.abs(edge.weight)) / Math.max(total, 1e-10);
      ofEdges.set(edge, share);
      ofNodes.set(edge.source, ofNodes.get(edge.source) + share);
    }
  }
  return { ofNodes, ofEdges };
}

function ownWeight(node) {
  if (node.kind === "logit") return node.probability ?? 1;
  return node.kind === "output" ? 1 : 0;
}
