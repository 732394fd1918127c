// Finding nodes by id, label, token, and the tokens of their contexts; the best matches first, in a list below the field.
import { choose, drawnFor } from "#choice";
import { circuit } from "#data";
import { get, html } from "#dom";
import { select } from "#groups";
import { current, set, subscribe } from "#store";
import { known, shortened, visible } from "#text";
import { reveal } from "#view";
import { caption } from "#words";

// Matches that are listed; all of them are marked in the drawing.
const FEW = 50;
let hits = [];
let last = -1;

export function search() {
  const input = get("search");
  const list = html("div", { id: "results", role: "listbox", "aria-label": "found nodes", hidden: "" });
  input.closest("#tools").append(list);
  for (const [name, value] of [
    ["role", "combobox"],
    ["aria-controls", "results"],
    ["aria-autocomplete", "list"],
  ]) {
    input.setAttribute(name, value);
  }
  input.addEventListener("input", () => find(input.value));
  input.addEventListener("focus", () => find(input.value));
  input.addEventListener("keydown", keys);
  document.addEventListener("pointerdown", (event) => {
    if (event.target !== input && !list.contains(event.target)) list.hidden = true;
  });
  subscribe(["labels", "groups"], () => words.clear());
}

function keys(event) {
  const step = { ArrowDown: 1, ArrowUp: -1, Enter: last < 0 || !event.shiftKey ? 1 : 0 }[event.key];
  if (event.key === "Escape") close();
  if (!step || !hits.length) return;
  event.preventDefault();
  mark((last + step + hits.length) % hits.length);
  if (event.key === "Enter") go(hits[last].node);
}

function close() {
  get("results").hidden = true;
  get("search").setAttribute("aria-expanded", "false");
}

function find(text) {
  const wanted = text.trim().toLowerCase();
  hits = wanted ? matching(wanted) : [];
  last = -1;
  get("found").textContent = wanted ? `${hits.length} found` : "";
  set({ found: new Set(hits.map((hit) => hit.node.id)) });
  const list = get("results");
  list.hidden = hits.length === 0;
  get("search").setAttribute("aria-expanded", String(hits.length > 0));
  get("search").removeAttribute("aria-activedescendant");
  list.replaceChildren(...(hits.length > 1 ? [several()] : []), ...hits.slice(0, FEW).map(line));
  list.scrollTop = 0;
}

function matching(wanted) {
  const found = [];
  for (const node of circuit.nodes) {
    const at = wordsOf(node).findIndex(([, word]) => word.includes(wanted));
    if (at < 0) continue;
    const [where, word] = wordsOf(node)[at];
    found.push({ node, at: word === wanted ? -1 : at, where: where === "context" ? around(word, wanted) : where });
  }
  return found.sort((a, b) => a.at - b.at);
}

// What a node is found by, the most telling first.
const words = new Map();
function wordsOf(node) {
  if (!words.has(node.id))
    words.set(
      node.id,
      listed(node).map(([where, word]) => [where, word.toLowerCase()]),
    );
  return words.get(node.id);
}

function listed(node) {
  const { details } = node;
  const told = [
    ["", node.id],
    ["", caption(node)[0]],
    ["token", known(node.token) ? node.token.trim() : ""],
    ["", current().groups.find((group) => group.members.includes(node.id))?.name || ""],
  ];
  if (!details) return told;
  const sides = [details, ...(details.negative ? [details.negative] : [])];
  return [
    ...told,
    ["promoted", details.promoted.map(([token]) => token).join("\n")],
    ["suppressed", details.suppressed.map(([token]) => token).join("\n")],
    ...sides.flatMap((side) => side.contexts.map((context) => ["context", context.tokens.join("")])),
  ];
}

function around(word, wanted) {
  const at = word.indexOf(wanted);
  return "… " + word.slice(Math.max(0, at - 16), at + wanted.length + 16) + " …";
}

function several() {
  const all = html("button", { type: "button", title: "For a group of your own" }, `select all ${hits.length}`);
  all.addEventListener("click", () => {
    for (const { node } of hits) select(node.id, true);
    choose(null);
    close();
  });
  return html("div", { class: "buttons" }, all);
}

function line({ node, where }, index) {
  const view = html(
    "div",
    { role: "option", class: "hit", id: "hit-" + index, "data-hit": node.id, "aria-selected": "false" },
    html("b", {}, node.id),
    html("span", {}, shortened(caption(node)[0], 44)),
    where ? html("small", {}, shortened(where, 60)) : null,
  );
  view.title = visible(caption(node)[0]).slice(0, 500);
  view.addEventListener("click", (event) => {
    if (event.shiftKey) select(node.id);
    else {
      go(node);
      close();
    }
  });
  return view;
}

function mark(index) {
  last = index;
  for (const [number, view] of [...get("results").querySelectorAll(".hit")].entries()) {
    view.setAttribute("aria-selected", String(number === last));
    if (number === last) view.scrollIntoView({ block: "nearest" });
  }
  get("search").setAttribute("aria-activedescendant", "hit-" + last);
}

function go(node) {
  choose(node.id);
  reveal(drawnFor(node.id));
}
