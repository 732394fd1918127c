// The name of the circuit, what it explains, and the prompt whose tokens are the columns.
import { nodeOf, pointAtPosition } from "#choice";
import { circuit, facts, outcome } from "#data";
import { fill, get, html } from "#dom";
import { subscribe } from "#store";
import { number, visible } from "#text";

export function heading() {
  const { graph } = circuit;
  fill(get("heading"), {}, [
    html("h1", {}, visible(graph.name)),
    html("span", { class: "fact" }, facts.join("  ·  ")),
    outcome.map((line) => html("div", { class: "outcome" }, line)),
    prompt(graph),
    ...nextTokens(graph),
  ]);
  subscribe(["chosen"], ({ chosen }) => {
    const position = chosen ? nodeOf(chosen).position : null;
    for (const token of document.querySelectorAll("#prompt .token")) {
      token.classList.toggle("at", position !== null && token.dataset.position === String(position));
    }
  });
}

function prompt(graph) {
  const used = new Set(circuit.nodes.map((node) => node.position));
  const columns = graph.columns || (graph.n_prompts > 1 ? [] : graph.tokens.map((token) => [token]));
  const view = html("div", { id: "prompt", "aria-label": "prompt" });
  for (const [position, tokens] of columns.entries()) view.append(column(tokens, position, used.has(position)));
  if (!graph.tokens.length && graph.n_prompts === 1) view.append(visible(graph.prompt));
  return view;
}

function column(tokens, position, used) {
  const lines = tokens.map((token) => html("div", {}, visible(token) || " "));
  const title = tokens.map((token) => JSON.stringify(token)).join("  ");
  const about = { class: used ? "token used" : "token", "data-position": position, title };
  const view = html("span", about, lines, html("small", {}, String(position)));
  if (used) view.addEventListener("click", () => pointAtPosition(position));
  return view;
}

// What the model says next, in the clean run; each token with its probability.
function nextTokens(graph) {
  if (!graph.next_tokens?.length) return [];
  const tokens = graph.next_tokens.map(([token, probability]) => {
    const told = html("small", {}, `${number(100 * probability)} %`);
    return html("span", { class: "token", title: JSON.stringify(token) }, html("div", {}, visible(token) || " "), told);
  });
  return [
    html(
      "div",
      { id: "next", "aria-label": "most likely next tokens" },
      html("span", { class: "fact" }, "next "),
      tokens,
    ),
  ];
}
