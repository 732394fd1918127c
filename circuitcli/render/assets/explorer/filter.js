// Sliders for how many nodes and edges are drawn, and what these are of the whole. Counts grow by factors along a
// slider, so that the strongest hundredth is most of it.
import { circuit, layout } from "#data";
import { get, html } from "#dom";
import { limit } from "#edges";
import { ranking } from "#ranking";
import { current, set, subscribe } from "#store";
import { number, percent } from "#text";

const STEPS = 1000;

export function filter() {
  const [forNodes, forEdges] = [get("min-effect"), get("edge-share")];
  const [nNodes, nEdges] = [circuit.nodes.length, circuit.edges.length];
  forNodes.addEventListener("input", () => set({ nodeCount: countOf(forNodes.value, nNodes) }));
  forEdges.addEventListener("input", () => set({ edgeCount: countOf(forEdges.value, nEdges) }));
  get("rank-by").addEventListener("change", () => set({ by: get("rank-by").value }));
  subscribe(
    ["nodeCount", "edgeCount", "by"],
    ({ nodeCount, edgeCount, by }) => {
      if (countOf(forNodes.value, nNodes) !== nodeCount) forNodes.value = String(stepOf(nodeCount, nNodes));
      if (countOf(forEdges.value, nEdges) !== edgeCount) forEdges.value = String(stepOf(edgeCount, nEdges));
      get("rank-by").value = by;
    },
    true,
  );
  subscribe(["boxes", "shown", "by"], tell, true);
  const alone = get("one-column");
  alone.parentNode.hidden = layout.columns.length < 2;
  alone.addEventListener("change", () => set({ inOneColumn: alone.checked }));
  subscribe(["inOneColumn"], ({ inOneColumn }) => Object.assign(alone, { checked: inOneColumn }), true);
}

// From a step of a slider, 0 to STEPS, to a count, 0 to `total`, and back.
export const countOf = (step, total) => Math.round((total + 1) ** (Number(step) / STEPS)) - 1;

function stepOf(count, total) {
  if (count >= total) return STEPS;
  return Math.round((STEPS * Math.log(count + 1)) / Math.log(total + 1));
}

function tell() {
  const { boxes, shown } = current();
  const { nodes, edges } = circuit;
  const told = [`${count(shown.length)} of ${count(edges.length)} edges`, ...shares()];
  const others = boxes.length < nodes.length ? "; the others have no edge among these" : "";
  const lines = [told.join(", "), `${count(boxes.length)} of ${count(nodes.length)} boxes${others}`];
  if (shown.length > limit())
    lines.push(`the strongest ${count(limit())} can be pointed at; pin a box for all of its own`);
  get("counts").replaceChildren(...lines.map((line) => html("div", {}, line)));
}

const count = (value) => value.toLocaleString("en");

// The least size that is drawn, and the share of all sizes.
function shares() {
  const { shown, by } = current();
  if (by === "influence") return influenceShare(new Set(shown));
  return circuit.scales.map(({ unit }) => {
    const [kept, all] = [sizes(shown, unit), sizes(circuit.edges, unit)];
    if (!kept.length || sum(all) === 0) return `none in ${unit}`;
    const least = kept.reduce((a, b) => Math.min(a, b));
    return `|weight| ≥ ${number(least)} ${unit}, ${percent(sum(kept) / sum(all))} of their total`;
  });
}

function influenceShare(shown) {
  const all = ranking("influence").edges;
  const total = sum(all.map(({ size }) => size));
  const kept = sum(all.filter(({ item }) => shown.has(item)).map(({ size }) => size));
  return total > 0 ? [`${percent(kept / total)} of the influence on the output`] : [];
}

const sizes = (list, unit) => list.filter((edge) => edge.unit === unit).map((edge) => Math.abs(edge.weight));
const sum = (list) => list.reduce((total, size) => total + size, 0);
