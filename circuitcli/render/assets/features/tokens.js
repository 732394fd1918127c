// Texts whose tokens are shaded by activation.
import { html } from "#element";
import { number, visible } from "#text";

// One token; strength is its share of the largest activation, below zero for codes below zero.
export function token(text, activation, largest, attributes) {
  const strength = largest ? Math.min(Math.abs(activation) / largest, 1) : 0;
  const shade = strength ? `--strength: ${Math.round(100 * strength)}%` : null;
  const sign = activation < 0 ? "negative" : "positive";
  const title = activation ? number(activation) : null;
  return html("span", { class: `token ${strength ? sign : ""}`, style: shade, title, ...attributes }, visible(text));
}

// A context: the activation at its peak, and its tokens; at: what ablating does there.
export function context(one, largest, ...more) {
  const peak = one.activations[one.peak];
  const tokens = one.tokens.map((text, at) =>
    token(text, one.activations[at], largest, at === one.peak ? { "data-peak": "" } : {}),
  );
  return html(
    "li",
    { "data-context": one.block ?? "" },
    html("small", {}, number(peak ?? 0)),
    html("p", { dir: "auto" }, tokens),
    more,
  );
}
