// Texts whose tokens are shaded by activation.
import { html } from "#element";
import { known, number, visible } from "#text";

// One token; strength is its share of the largest activation, below zero for codes below zero.
export function token(text, activation, largest, attributes) {
  const strength = largest ? Math.min(Math.abs(activation) / largest, 1) : 0;
  const shade = strength ? `--strength: ${Math.round(100 * strength)}%` : null;
  const sign = activation < 0 ? "negative" : "positive";
  const title = activation ? number(activation) : null;
  return html("span", { class: `token ${strength ? sign : ""}`, style: shade, title, ...attributes }, visible(text));
}

// A context: the activation at its peak, which quantile of all that is, and its tokens; more stands behind it.
export function context(one, largest, ...more) {
  const tokens = one.tokens.map((text, at) =>
    token(text, one.activations[at], largest, at === one.peak ? { "data-peak": "" } : {}),
  );
  const quantile = known(one.quantile) ? `quantile ${number(one.quantile)}` : "";
  const place = known(one.document) ? `document ${one.document}` : "";
  const about = [quantile, place].filter(Boolean).join(", ");
  const peak = html("small", { title: about }, number(one.activations[one.peak] ?? 0));
  if (known(one.quantile) && one.quantile < 0.95) peak.append(html("span", {}, ` ${Math.round(100 * one.quantile)} %`));
  return html("li", { "data-context": one.block ?? "" }, peak, html("p", { dir: "auto" }, tokens), more);
}
