// What is said about single nodes and edges.
import { circuit, metric } from "#data";
import { current } from "#store";
import { inPrompts, known, measured, number, sign, signed, visible } from "#text";

// A label, and whether it is only a guess from what the feature promotes.
export function caption(node) {
  const written = current().labels.get(node.feature || node.id);
  if (written) return [written, false];
  if (node.kind === "group") return [node.name, false];
  if (node.kind === "output") return [visible(metric), false];
  if (node.kind === "logit") return [`output "${visible(node.token || "")}"`, false];
  if (node.kind === "token") return ["token embedding", true];
  if (node.kind === "error") return ["unexplained part", true];
  const { details } = node;
  if (details?.label) return [details.label, false];
  if (details?.promoted.length) {
    return [
      "▲ " +
        details.promoted
          .slice(0, 4)
          .map((pair) => pair[0])
          .join(" "),
      true,
    ];
  }
  return ["", true];
}

// The numbers of a box, each with the name of its colour.
export function figures(node) {
  const { graph } = circuit;
  if (node.kind === "output") {
    if (!known(graph.metric_clean)) return [];
    return [[`${signed(graph.metric_clean)} clean, ${signed(graph.metric_baseline)} baseline`, ""]];
  }
  const parts = [];
  if (known(node.probability)) parts.push([`probability ${number(node.probability)}`, ""]);
  if (known(node.effect)) {
    const unit = known(node.standard_error) ? "" : node.unit;
    parts.push([measured(node.effect, node.standard_error, unit), sign(node.effect)]);
  }
  if (known(node.active)) parts.push([`  in ${Math.round(100 * node.active)} %`, ""]);
  else if (known(node.activation)) parts.push([`${parts.length ? "  " : ""}${activation(node)}`, ""]);
  return parts;
}

const activation = (node) => (isSilent(node) ? "silent here" : `activation ${number(node.activation)}`);

// Features that are not active and matter all the same, which is no fault.
export const isSilent = (node) => node.activation === 0 && Boolean(node.effect);

export function whySilent(node) {
  if (!isSilent(node)) return "";
  const { baseline } = circuit.graph;
  const run = { mean: "on average", counterfactual: "in the counterfactual run", resample: "in the other run" };
  const where = run[baseline] || "at the baseline";
  return `It is not active here, but ${where} it is: its effect is that of being silent (the ${baseline} baseline).`;
}

// Where a node stands: its position with the token there.
export function place(node) {
  if (node.kind === "output" || node.kind === "logit" || !known(node.position)) return "";
  return "@" + node.position + (known(node.token) ? ` "${node.token}"` : "");
}

export function aboutNode(node) {
  const [label] = caption(node);
  const effect = known(node.effect)
    ? `\neffect ${measured(node.effect, node.standard_error, node.unit)}${inPrompts(node.active)}`
    : "";
  const silent = isSilent(node) ? "\n" + whySilent(node) : "";
  const numbers = node.kind === "output" ? "\n" + figures(node)[0][0] + " " + circuit.graph.unit : "";
  const name = node.members ? `${node.members.length} nodes` : visible(node.id);
  return name + (label ? "\n" + visible(label) : "") + effect + silent + numbers;
}

export function aboutEdge(edge) {
  const weight = measured(edge.weight, edge.standard_error, edge.unit) + inPrompts(edge.active);
  return `${visible(edge.source)} → ${visible(edge.target)}   ${weight}${byHead(edge.heads)}`;
}

function byHead(heads) {
  const parts = Object.entries(heads || {})
    .sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]))
    .slice(0, 4)
    .map(([name, value]) => `${name} ${signed(value)}`);
  return parts.length ? "   by head: " + parts.join(", ") : "";
}
