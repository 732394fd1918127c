// What is known about a feature: contexts shaded by its activation, logit effects, statistics, and where more is told.
import { contextsView } from "#contexts";
import { circuit } from "#data";
import { html } from "#dom";
import { histogramView } from "#histogram";
import { cell, rows } from "#tables";
import { known, number, signed, visible } from "#text";

export function featureView(details) {
  const { negative, decoder_norms: norms } = details;
  const lengths = norms ? Object.entries(norms).map(([hook, norm]) => [hook, number(norm)]) : null;
  return [
    ...contextsView(details, details.max),
    ...(negative ? contextsView(negative, negative.min) : []),
    ...logits("promotes (logits)", details.promoted, "up"),
    ...logits("suppresses (logits)", details.suppressed, "down"),
    ...sideView(details, negative ? "its codes above zero" : "the feature", details.max),
    ...(negative ? sideView(negative, "its codes below zero: " + visible(negative.label), negative.min) : []),
    ...(lengths ? [html("h3", {}, "written to (length of its decoder row)"), rows(lengths)] : []),
  ];
}

// Pages that tell more about the feature of a node.
export function linksOf(node) {
  if (node.kind !== "feature") return null;
  const { features, neuronpedia } = circuit.links;
  const name = node.feature;
  const index = name.slice(name.indexOf("/") + 1);
  const there = [
    features ? ["its page", `${features}#${name}`] : null,
    neuronpedia[node.hook] ? ["Neuronpedia", `${neuronpedia[node.hook]}/${index}`] : null,
  ].filter(known);
  const links = there.map(([text, address]) =>
    html("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, text + " ↗"),
  );
  return links.length ? html("div", { class: "links" }, links) : null;
}

function logits(title, pairs, kind) {
  if (!pairs.length) return [];
  const tokens = pairs.map(([token, value]) =>
    html("span", { class: kind, title: JSON.stringify(token) }, visible(token), html("small", {}, signed(value))),
  );
  const order = "In logits for each unit of activation; first what other features move less.";
  return [html("h3", { title: order }, title), html("div", { class: "logits" }, tokens)];
}

// Statistics of the codes of one sign.
function sideView(side, title, furthest) {
  const below = furthest < 0;
  return [
    html("h3", {}, title),
    rows([
      ["density", known(side.density) ? number(100 * side.density) + " % of tokens" : null],
      ["active tokens", known(side.n_active) ? side.n_active.toLocaleString("en") : null],
      [below ? "lowest" : "largest", known(furthest) ? number(furthest) : null],
      ["mean when active", known(side.mean) ? number(side.mean) : null],
    ]),
    ...(side.histogram ? histogramView(side.histogram, below) : []),
    ...quantiles(side),
  ];
}

function quantiles(side) {
  const pairs = Object.entries(side.quantiles).sort((a, b) => a[0] - b[0]);
  if (!pairs.length) return [];
  const row = (cells) => html("tr", {}, cells);
  const names = row(pairs.map(([q]) => html("th", {}, q)));
  const values = row(pairs.map(([, value]) => cell(number(value))));
  return [html("h3", {}, "quantiles of its activation"), html("table", {}, names, values)];
}
