// Finding nodes by id, token, label, promoted tokens and the tokens at which they are most active.
import { choose } from "#choice";
import { circuit } from "#data";
import { get } from "#dom";
import { set } from "#store";
import { reveal } from "#view";

let last = -1;

export function search() {
  const input = get("search");
  input.addEventListener("input", () => {
    last = -1;
    find(input.value);
  });
  input.addEventListener("keydown", (event) => {
    const hits = event.key === "Enter" ? find(input.value) : [];
    if (!hits.length) return;
    last = (last + 1) % hits.length;
    choose(hits[last]);
    reveal(hits[last]);
  });
}

function find(text) {
  const wanted = text.trim().toLowerCase();
  const hits = wanted ? circuit.nodes.filter((node) => matches(node, wanted)).map((node) => node.id) : [];
  get("found").textContent = wanted ? hits.length + " found" : "";
  set({ found: new Set(hits) });
  return hits;
}

function matches(node, wanted) {
  const { details } = node;
  const words = [node.id, node.token || ""];
  if (details) {
    words.push(details.label, ...details.promoted.map((pair) => pair[0]));
    words.push(...details.contexts.map((context) => context.tokens[context.peak] || ""));
  }
  return words.some((word) => word.toLowerCase().includes(wanted));
}
