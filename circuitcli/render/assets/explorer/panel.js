// The side panel: all that is known about the pinned node or group, or else an overview of the circuit.
import { choose, nodeOf } from "#choice";
import { traceView } from "#contexts";
import { circuit, incoming, metric, noun, outgoing } from "#data";
import { get, html } from "#dom";
import { featureView, linksOf } from "#feature";
import { button, groupView, selectionView } from "#gathering";
import { groupWith, isGroup } from "#groups";
import { editable, isEdited } from "#labels";
import { overview } from "#overview";
import { current, subscribe } from "#store";
import { edgeTable, interval, rows } from "#tables";
import { known, measured, number, percent, sign, signed, visible } from "#text";
import { whySilent } from "#words";

const SOURCES = { hand: "label by hand", model: "label by a model", neuronpedia: "label of Neuronpedia" };

export function panel() {
  get("panel").setAttribute("aria-label", "details");
  let last = null;
  subscribe(
    ["chosen", "selected", "groups", "labels", "hidden"],
    ({ chosen }) => {
      const top = chosen === last ? get("panel").scrollTop : 0;
      last = chosen;
      get("panel").replaceChildren(...selectionView(), ...contentOf(chosen));
      get("panel").scrollTop = top;
    },
    true,
  );
}

function contentOf(chosen) {
  if (!chosen) return overview();
  const close = button("overview", "Back to the overview (Escape)", () => choose(null), { class: "back" });
  if (isGroup(chosen)) return [close, ...groupView(chosen), ...edgesOf(chosen)];
  return [close, ...aboutNode(nodeOf(chosen))];
}

function aboutNode(node) {
  const { details } = node;
  // Of heads and MLPs no coder tells anything.
  const isFeature = node.kind === "feature" && noun === "features";
  const hint = "Nothing is known about this feature; circuit interp describes features.";
  const silent = whySilent(node);
  return [
    html("h2", {}, visible(node.id)),
    node.kind === "feature" ? html("div", { class: "label" }, editable(node)) : null,
    source(node),
    linksOf(node),
    rows([...nodeRows(node), ...(node.kind === "output" ? outputRows() : [])]),
    silent ? html("p", { class: "grey" }, silent) : null,
    ...traceView(node),
    ...(details ? featureView(details) : isFeature ? [html("p", { class: "grey" }, hint)] : []),
    ...edgesOf(node.id),
  ].filter(known);
}

// Where the label is from, if not from the rules.
function source(node) {
  const { details } = node;
  if (isEdited(node)) return html("div", { class: "grey" }, "label written here");
  const told = SOURCES[details?.label_source];
  if (!told) return null;
  const score = known(details.label_score) ? `, balanced accuracy ${number(details.label_score)}` : "";
  return html("div", { class: "grey" }, told + score);
}

// All edges of the circuit, also those that are not drawn; of a group those that are.
function edgesOf(id) {
  const { shown } = current();
  const [into, from] = isGroup(id)
    ? ["target", "source"].map((end) => shown.filter((edge) => edge[end] === id).toReversed())
    : [incoming.get(id), outgoing.get(id)];
  return [...edgeTable("it depends on", into, "source"), ...edgeTable("depends on it", from, "target")];
}

function nodeRows(node) {
  const at = known(node.position) ? ` at position ${node.position}` : "";
  const effect = () =>
    html("span", { class: sign(node.effect) }, measured(node.effect, node.standard_error, node.unit));
  const writes = node.kind === "feature" && circuit.graph.writes && circuit.graph.writes[node.hook];
  const group = groupWith(node.id);
  return [
    ["token", known(node.token) ? `"${visible(node.token)}"${at}` : null],
    ["probability", known(node.probability) ? number(node.probability) : null],
    ["influence on the logits", known(node.influence) ? number(node.influence) : null],
    ["span", typeof node.position === "string" ? node.position : null],
    ["effect", known(node.effect) ? effect() : null],
    ["95 % interval", known(node.standard_error) ? interval(node.effect, node.standard_error, node.unit) : null],
    ["active", known(node.active) ? `in ${percent(node.active)} of the prompts` : null],
    [
      circuit.graph.n_prompts > 1 ? "mean activation" : "activation",
      known(node.activation) ? number(node.activation) : null,
    ],
    ["written to", writes ? writes.join(" ") : null],
    [
      "group",
      group ? button(visible(group.name), "Look at the group", () => choose(group.id), { class: "text" }) : null,
    ],
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
