// What is drawn of the circuit, and where: the first nodes and edges of a ranking, without boxes that have no edge left.
import { arrange } from "#arrange";
import { circuit, incoming, nodes, outgoing } from "#data";
import { ranking } from "#ranking";
import { current, set, subscribe } from "#store";

export function drawing() {
  set({ edgeCount: circuit.edges.filter((edge) => edge.drawn).length });
  subscribe(["by", "nodeCount", "edgeCount", "inOneColumn", "merge", "hidden"], update, true);
  subscribe(["chosen"], ({ chosen, boxes }) => {
    if (chosen && nodes.has(chosen) && !boxes.some((node) => covers(node, chosen))) update();
  });
}

const covers = (node, id) => node.id === id || Boolean(node.members?.includes(id));

function update() {
  const kept = filtered();
  const { nodes: boxes, edges: shown } = current().merge ? current().merge(kept) : kept;
  const placed = arrange(boxes, current());
  // What the pointer was at may be gone.
  set({ boxes, shown: shown.sort((a, b) => a.strength - b.strength), placed, focus: null });
}

function filtered() {
  const { by, nodeCount, edgeCount, chosen, hidden } = current();
  const ranked = ranking(by);
  const kept = first(ranked.nodes, nodeCount).filter((node) => !hidden.has(node.kind));
  const allowed = new Set(kept.map((node) => node.id));
  const edges = first(ranked.edges, edgeCount).filter((edge) => allowed.has(edge.source) && allowed.has(edge.target));
  const ends = new Set(edges.flatMap((edge) => [edge.source, edge.target]));
  const stays = ({ id, hook }) =>
    id === chosen ||
    (allowed.has(id) && (ends.has(id) || !hook || !(incoming.get(id).length + outgoing.get(id).length)));
  return { nodes: circuit.nodes.filter(stays), edges };
}

const first = (ranked, count) => ranked.slice(0, Math.min(count, ranked.length)).map(({ item }) => item);
