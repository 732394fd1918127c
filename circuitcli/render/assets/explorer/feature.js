// What is known about a feature: logit effects, statistics, and contexts shaded by its activation.
import { html } from "#dom";
import { cell, rows } from "#tables";
import { known, number, signed, visible } from "#text";

export function featureView(details) {
  const { negative, decoder_norms: norms } = details;
  const lengths = norms ? Object.entries(norms).map(([hook, norm]) => [hook, number(norm)]) : null;
  return [
    ...logits("promotes (logits)", details.promoted, "up"),
    ...logits("suppresses (logits)", details.suppressed, "down"),
    ...(lengths ? [html("h3", {}, "written to (length of its decoder row)"), rows(lengths)] : []),
    ...sideView(details, negative ? "its codes above zero" : "the feature", details.max),
    ...(negative ? sideView(negative, "its codes below zero: " + visible(negative.label), negative.min) : []),
  ];
}

function logits(title, pairs, kind) {
  if (!pairs.length) return [];
  const tokens = pairs.map(([token, value]) =>
    html("span", { class: kind, title: JSON.stringify(token) }, visible(token), html("small", {}, signed(value))),
  );
  return [html("h3", {}, title), html("div", { class: "logits" }, tokens)];
}

// Statistics and contexts of the codes of one sign.
function sideView(side, title, furthest) {
  const below = furthest < 0;
  const sizes = side.contexts.flatMap((context) => context.activations.map(Math.abs));
  const largest = Math.abs(furthest || 0) || sizes.reduce((a, b) => Math.max(a, b), 0);
  const contexts = side.contexts.map((context) => contextView(context, largest));
  return [
    html("h3", {}, title),
    rows([
      ["density", known(side.density) ? number(100 * side.density) + " % of tokens" : null],
      ["active tokens", known(side.n_active) ? String(side.n_active) : null],
      [below ? "lowest" : "largest", known(furthest) ? number(furthest) : null],
      ["mean when active", known(side.mean) ? number(side.mean) : null],
    ]),
    ...quantiles(side),
    ...(contexts.length ? [html("h3", {}, below ? "where it is lowest" : "where it is most active"), ...contexts] : []),
  ];
}

function quantiles(side) {
  const pairs = Object.entries(side.quantiles).sort((a, b) => a[0] - b[0]);
  if (!pairs.length) return [];
  const names = html(
    "tr",
    {},
    pairs.map(([q]) => html("th", {}, q)),
  );
  const values = html(
    "tr",
    {},
    pairs.map(([, value]) => cell(number(value))),
  );
  return [html("h3", {}, "quantiles of its activation"), html("table", {}, names, values)];
}

function contextView(context, largest) {
  const spans = context.tokens.map((token, index) => {
    const activation = context.activations[index] || 0;
    const about = {
      title: `${JSON.stringify(token)}  ${number(activation)}`,
      class: index === context.peak ? "peak" : null,
    };
    const span = html("span", about, visible(token));
    if (activation !== 0) span.style.background = shade(activation, largest);
    return span;
  });
  const peak = context.activations[context.peak];
  const where = [
    known(peak) ? "peak " + number(peak) : null,
    known(context.block) ? "block " + context.block : null,
    known(context.position) ? "position " + context.position : null,
  ];
  return html("div", { class: "context" }, spans, html("small", {}, where.filter(known).join(", ")));
}

function shade(activation, largest) {
  const share = largest > 0 ? Math.min(Math.abs(activation) / largest, 1) : 0;
  return `rgba(${activation < 0 ? "255, 140, 93" : "93, 130, 255"}, ${(0.8 * share).toFixed(3)})`;
}
