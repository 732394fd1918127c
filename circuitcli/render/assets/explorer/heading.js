// The name of the circuit, what it explains, and the prompt whose tokens are the columns.
import { pointAtPosition } from "#choice";
import { circuit, facts, nodes } from "#data";
import { get, html } from "#dom";
import { subscribe } from "#store";
import { visible } from "#text";

export function heading() {
  const { graph } = circuit;
  get("heading").append(
    html("h1", {}, visible(graph.name)),
    html("span", { class: "fact" }, facts.join("  ·  ")),
    prompt(graph),
  );
  subscribe(["chosen"], ({ chosen }) => {
    const position = chosen ? nodes.get(chosen).position : null;
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
