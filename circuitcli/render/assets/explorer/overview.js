// The side panel without a pinned node: what is explained and how well, and where to begin.
import { circuit, conditions, metric, noun } from "#data";
import { html } from "#dom";
import { groupsView } from "#gathering";
import { current, set } from "#store";
import { cell, nodeLine, numberCell, rows } from "#tables";
import { known, number, signed, visible } from "#text";

const HELP =
  "Point at a box or an edge for its numbers; click a box for all that is known about it. Press ? for all keys.";
// Nodes that the sliders can leave out anyway.
const KINDS = { feature: noun, error: "error terms", token: "token embeddings" };

export function overview() {
  return [
    html("h2", {}, visible(circuit.graph.name)),
    rows(graphRows()),
    ...scoreTable(),
    ...strongestNodes(),
    ...kindsView(),
    ...groupsView(),
    html("p", { class: "grey" }, HELP),
  ];
}

function graphRows() {
  const { graph, nodes: all, edges } = circuit;
  const of = graph.prompts ? " of " + visible(graph.prompts) : "";
  const means = "numbers are means with 95 % intervals, and the share of prompts in which they are not zero";
  const count = (value) => value.toLocaleString("en");
  return [
    ["metric", visible(metric)],
    ["clean", known(graph.metric_clean) ? signed(graph.metric_clean, graph.unit) : null],
    [
      "baseline",
      known(graph.metric_baseline) ? `${signed(graph.metric_baseline, graph.unit)} (${graph.baseline})` : null,
    ],
    ["prompts", graph.n_prompts > 1 ? `${count(graph.n_prompts)}${of}; ${means}` : null],
    ["replacement", known(graph.replacement) ? number(graph.replacement) : null],
    [
      "completeness",
      known(graph.completeness)
        ? `${number(graph.completeness)}, of nodes with inputs ${number(graph.completeness_of_inputs)}`
        : null,
    ],
    ["active", known(graph.n_active) ? `${count(graph.n_active)} features, ${count(graph.n_expanded)} expanded` : null],
    ["model", told(graph.model)],
    ["method", graph.method],
    ["positions", graph.positions],
    ["numbers", told(graph.dtype)],
    ["size", `${counted(all, "node")}, ${counted(edges, "edge")}`],
  ];
}

// Files of other programs do not tell all.
const told = (text) => (text === "unknown" ? null : visible(text));

const counted = (all, name) => `${all.length.toLocaleString("en")} ${name}${all.length === 1 ? "" : "s"}`;

function scoreTable() {
  if (!circuit.scores.length) return [];
  const lines = circuit.scores.map((score, index) => {
    const told = Object.entries(conditions[index])
      .map(([name, value]) => `${name} ${value}`)
      .join(", ");
    const between = known(score.low) && known(score.high) ? `${number(score.low)} to ${number(score.high)}` : "";
    const name = html("td", {}, visible(score.name), html("div", { class: "grey" }, told));
    return html("tr", {}, name, cell(number(score.value), "number"), cell(between, "number grey"));
  });
  // The two that matter stand in the heading.
  const title = html("summary", {}, `all ${lines.length} scores`);
  return [html("details", { id: "scores" }, title, html("table", {}, lines))];
}

function strongestNodes() {
  const ranked = circuit.nodes
    .filter((node) => known(node.effect))
    .sort((a, b) => Math.abs(b.effect) - Math.abs(a.effect))
    .slice(0, 10);
  if (!ranked.length) return [];
  const lines = ranked.map((node) =>
    nodeLine(node, {}, numberCell(node.effect, node.standard_error, node.active), cell(node.unit || "", "unit")),
  );
  return [html("h3", {}, "largest effects on the metric"), html("table", {}, lines)];
}

// Which kinds of nodes are drawn at all, where there are several.
function kindsView() {
  const counts = new Map();
  for (const node of circuit.nodes) if (KINDS[node.kind]) counts.set(node.kind, (counts.get(node.kind) || 0) + 1);
  if (counts.size < 2) return [];
  const boxes = [...counts].map(([kind, count]) => {
    const box = html("input", { type: "checkbox", "data-kind": kind });
    box.checked = !current().hidden.has(kind);
    box.addEventListener("change", () => toggle(kind, !box.checked));
    return html("label", {}, box, ` ${KINDS[kind]} (${count})`);
  });
  return [html("h3", {}, "drawn are"), html("div", { class: "kinds" }, boxes)];
}

function toggle(kind, hides) {
  const hidden = new Set(current().hidden);
  if (hides) hidden.add(kind);
  else hidden.delete(kind);
  set({ hidden });
}
