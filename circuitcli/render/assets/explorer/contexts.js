// Texts shaded by a feature's activation: the prompt itself first, then where the feature is most active.
import { circuit } from "#data";
import { html } from "#dom";
import { known, number, visible } from "#text";

// Contexts that are seen at once; the others open on demand.
const FEW = 4;

// How active the feature is along the prompt; of several prompts along the one where it is strongest.
export function traceView(node) {
  const trace = circuit.traces?.[node.feature];
  if (!trace) return [];
  const sizes = trace.activations.map(Math.abs);
  const largest = sizes.reduce((a, b) => Math.max(a, b), 0);
  const scale = Math.max(largest, Math.abs(node.details?.max || 0));
  const title = known(trace.prompt) ? `in prompt ${trace.prompt}, where it is strongest` : "in this prompt";
  const at = known(trace.prompt) ? -1 : placeOf(node.position, trace);
  const spans = trace.tokens.map((token, index) =>
    shaded(token, trace.activations[index] || 0, scale, at === index ? "peak" : null),
  );
  const told = largest > 0 ? `largest ${number(largest)}` : "it is not active here";
  return [html("h3", {}, title), html("div", { class: "context trace" }, spans, html("small", {}, told))];
}

// Which of the texts of a prompt a position is in: several positions share a character that is cut in several tokens.
function placeOf(position, trace) {
  return Number.isInteger(position) ? trace.positions.findLastIndex((first) => first <= position) : -1;
}

export function contextsView(side, furthest) {
  if (!side.contexts.length) return [];
  const sizes = side.contexts.flatMap((context) => context.activations.map(Math.abs));
  const largest = Math.abs(furthest || 0) || sizes.reduce((a, b) => Math.max(a, b), 0);
  const views = side.contexts.map((context) => contextView(context, largest));
  const title = html("h3", {}, furthest < 0 ? "where it is lowest" : "where it is most active");
  if (views.length <= FEW + 1) return [title, ...views];
  const rest = html("details", {}, html("summary", {}, `${views.length - FEW} more`), views.slice(FEW));
  return [title, ...views.slice(0, FEW), rest];
}

function contextView(context, largest) {
  const spans = context.tokens.map((token, index) =>
    shaded(token, context.activations[index] || 0, largest, index === context.peak ? "peak" : null),
  );
  const peak = context.activations[context.peak];
  const where = [
    known(peak) ? "peak " + number(peak) : null,
    known(context.quantile) ? `quantile ${context.quantile}` : null,
    known(context.document) ? "document " + context.document : null,
    known(context.block) ? "block " + context.block : null,
    known(context.position) ? "position " + context.position : null,
  ];
  return html("div", { class: "context" }, spans, html("small", {}, where.filter(known).join(", ")));
}

function shaded(token, activation, largest, kind) {
  const span = html("span", { title: `${JSON.stringify(token)}  ${number(activation)}`, class: kind }, visible(token));
  if (activation !== 0) {
    const share = largest > 0 ? Math.min(Math.abs(activation) / largest, 1) : 0;
    span.classList.add(activation < 0 ? "below" : "above");
    span.style.setProperty("--share", `${Math.round(8 + 72 * share)}%`);
  }
  return span;
}
