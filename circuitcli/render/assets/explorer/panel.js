// The side panel: all that is known about the pinned node, or else an overview of the circuit.
import { choose } from "#choice";
import { circuit, conditions, incoming, metric, nodes, outgoing } from "#data";
import { get, html } from "#dom";
import { featureView } from "#feature";
import { subscribe } from "#store";
import { cell, edgeTable, nodeLine, numberCell, rows } from "#tables";
import { known, measured, number, percent, sign, signed, visible } from "#text";

const HELP =
  "Point at a box or an edge for its numbers; click a box for all that is known about it. " +
  "Keys: / find, + and - zoom, 0 fit, arrows move, Tab and Enter choose, Escape back.";

export function panel() {
  subscribe(["chosen"], ({ chosen }) => show(chosen), true);
}

function show(chosen) {
  get("panel").replaceChildren(...(chosen ? aboutNode(nodes.get(chosen)) : overview()));
  get("panel").scrollTop = 0;
}

function aboutNode(node) {
  const { details } = node;
  const close = html("button", { type: "button", title: "Back to the overview (Escape)" }, "overview");
  close.addEventListener("click", () => choose(null));
  const unknown = html(
    "p",
    { class: "grey" },
    "Nothing is known about this feature; circuit interp describes features.",
  );
  return [
    html("div", { style: "float:right" }, close),
    html("h2", {}, node.id),
    details?.label ? html("div", {}, visible(details.label)) : null,
    rows([...nodeRows(node), ...(node.kind === "output" ? outputRows() : [])]),
    ...(details ? featureView(details) : node.kind === "feature" ? [unknown] : []),
    ...edgeTable("into it, from", incoming.get(node.id), "source"),
    ...edgeTable("from it, to", outgoing.get(node.id), "target"),
  ].filter((part) => part !== null);
}

function nodeRows(node) {
  const at = known(node.position) ? ` at position ${node.position}` : "";
  const effect = () =>
    html("span", { class: sign(node.effect) }, measured(node.effect, node.standard_error, node.unit));
  const writes = node.kind === "feature" && circuit.graph.writes && circuit.graph.writes[node.hook];
  return [
    ["token", known(node.token) ? `"${visible(node.token)}"${at}` : null],
    ["probability", known(node.probability) ? number(node.probability) : null],
    ["influence on the logits", known(node.influence) ? number(node.influence) : null],
    ["span", typeof node.position === "string" ? node.position : null],
    ["effect", known(node.effect) ? effect() : null],
    ["active", known(node.active) ? `in ${percent(node.active)} of the prompts` : null],
    [
      circuit.graph.n_prompts > 1 ? "mean activation" : "activation",
      known(node.activation) ? number(node.activation) : null,
    ],
    ["written to", writes ? writes.join(" ") : null],
  ];
}

function outputRows() {
  const { graph } = circuit;
  return [
    ["metric", visible(metric)],
    ["clean", signed(graph.metric_clean, graph.unit)],
    ["baseline", signed(graph.metric_baseline, graph.unit)],
  ];
}

function overview() {
  return [
    html("h2", {}, visible(circuit.graph.name)),
    rows(graphRows()),
    ...scoreTable(),
    ...strongestNodes(),
    html("p", { class: "grey" }, HELP),
  ];
}

function graphRows() {
  const { graph, nodes: all, edges } = circuit;
  const of = graph.prompts ? " of " + visible(graph.prompts) : "";
  const means = "numbers are means ± standard error, and the share of prompts in which they are not zero";
  const count = (value) => value.toLocaleString("en");
  return [
    ["metric", visible(metric)],
    ["clean", signed(graph.metric_clean, graph.unit)],
    ["baseline", `${signed(graph.metric_baseline, graph.unit)} (${graph.baseline})`],
    ["prompts", graph.n_prompts > 1 ? `${count(graph.n_prompts)}${of}; ${means}` : null],
    ["replacement", known(graph.replacement) ? number(graph.replacement) : null],
    [
      "completeness",
      known(graph.completeness)
        ? `${number(graph.completeness)}, of nodes with inputs ${number(graph.completeness_of_inputs)}`
        : null,
    ],
    ["active", known(graph.n_active) ? `${count(graph.n_active)} features, ${count(graph.n_expanded)} expanded` : null],
    ["model", graph.model],
    ["method", graph.method],
    ["positions", graph.positions],
    ["numbers", graph.dtype],
    ["size", `${all.length} nodes, ${edges.length} edges`],
  ];
}

function scoreTable() {
  if (!circuit.scores.length) return [];
  const lines = circuit.scores.map((score, index) => {
    const told = Object.entries(conditions[index])
      .map(([name, value]) => `${name} ${value}`)
      .join(", ");
    const interval = known(score.low) && known(score.high) ? `${number(score.low)} to ${number(score.high)}` : "";
    const name = html("td", {}, score.name, html("div", { class: "grey" }, told));
    return html("tr", {}, name, cell(number(score.value), "number"), cell(interval, "number grey"));
  });
  return [html("h3", {}, "scores"), html("table", {}, lines)];
}

function strongestNodes() {
  const ranked = circuit.nodes
    .filter((node) => known(node.effect))
    .sort((a, b) => Math.abs(b.effect) - Math.abs(a.effect))
    .slice(0, 15);
  if (!ranked.length) return [];
  const lines = ranked.map((node) =>
    nodeLine(node, {}, numberCell(node.effect, node.standard_error, node.active), cell(node.unit || "", "unit")),
  );
  return [html("h3", {}, "largest effects on the metric"), html("table", {}, lines)];
}
