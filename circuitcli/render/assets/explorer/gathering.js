// What of the side panel is about several nodes: the selection, groups, and those that are proposed.
import { choose, nodeOf, pointAtNothing } from "#choice";
import { nodes } from "#data";
import { html } from "#dom";
import { change, dissolve, group, groupOf, nameFor, proposed, select, selectNone } from "#groups";
import { field } from "#labels";
import { current, set } from "#store";
import { cell, nodeLine, numberCell } from "#tables";
import { known, number, visible } from "#text";
import { reveal } from "#view";

// Proposals that are listed at once.
const FEW = 8;

export function button(text, about, action, more = {}) {
  const made = html("button", { type: "button", title: about, ...more }, text);
  made.addEventListener("click", action);
  return made;
}

// What is selected, with what can be done with it; nothing where nothing is.
export function selectionView() {
  const chosen = [...current().selected].map((id) => nodes.get(id));
  if (!chosen.length) return [];
  const make = button("make a group (g)", "Draw these nodes as one box", makeGroup, { id: "make-group" });
  make.disabled = chosen.length < 2;
  const clear = button("clear", "Select nothing (Escape)", selectNone);
  const lines = chosen.map((node) =>
    memberLine(
      node,
      button("−", "Take it out", () => select(node.id, false)),
    ),
  );
  return [
    html(
      "section",
      { id: "selection", "aria-label": "selection" },
      html("h3", {}, `selected (${chosen.length})`),
      html("table", {}, lines),
      html("div", { class: "buttons" }, make, clear),
    ),
  ];
}

export function makeGroup() {
  const one = group([...current().selected]);
  if (one) show(one.id);
}

function show(id) {
  choose(id);
  reveal(id);
}

function memberLine(node, action) {
  const effect = known(node.effect) ? numberCell(node.effect, node.standard_error, node.active) : cell("");
  const line = nodeLine(node, {}, effect);
  line.append(html("td", { class: "act" }, action));
  return line;
}

// The panel of a group: its name, what can be done with it, and its members.
export function groupView(id) {
  const one = groupOf(id);
  const box = nodeOf(id);
  const members = one.members.map((name) => nodes.get(name));
  const name = field({
    id: "label",
    text: one.name,
    shown: visible(one.name) || "name this group",
    about: "Name this group (e)",
    save: (text) => change(id, { name: text.trim().slice(0, 10_000) }),
  });
  const lines = members.map((node) =>
    memberLine(
      node,
      button("−", "Take it out of the group", () => takeOut(one, node)),
    ),
  );
  return [
    html("h2", {}, name),
    html("div", { class: "grey" }, `a group of ${members.length} nodes, drawn as one box with the sums of their edges`),
    box && known(box.effect) ? html("div", {}, `sum of effects ${number(box.effect)} ${box.unit}`) : null,
    html(
      "div",
      { class: "buttons" },
      button(one.open ? "close" : "open", "Draw one box, or all members", () => toggle(one)),
      button("dissolve", "Forget this group", () => dissolve(id)),
    ),
    html("h3", {}, "members"),
    html("table", {}, lines),
  ].filter(known);
}

export function toggle(one) {
  change(one.id, { open: !one.open });
  if (!one.open && current().chosen === one.id) choose(null);
}

function takeOut(one, node) {
  const members = one.members.filter((id) => id !== node.id);
  if (members.length < 2) dissolve(one.id);
  else change(one.id, { members });
}

// All groups, and those that are proposed.
export function groupsView() {
  const { groups } = current();
  const offers = proposed();
  const hint = "Shift-click boxes, or search, to select some for a group of your own.";
  return [
    html(
      "section",
      { id: "groups", tabindex: -1, "aria-label": "groups" },
      html("h3", {}, groups.length ? `groups (${groups.length})` : "groups: none yet"),
      groups.length ? html("table", {}, groups.map(groupLine)) : null,
      offers.length ? html("h3", {}, `proposed by similar edges (${offers.length})`) : null,
      offers.length ? html("table", {}, offers.slice(0, FEW).map(offerLine)) : null,
      offers.length > FEW ? more(offers.slice(FEW)) : null,
      offers.length > 1
        ? html("div", { class: "buttons" }, button("accept all", "Make all of them groups", acceptAll))
        : null,
      html("p", { class: "grey" }, hint),
    ),
  ];
}

function more(offers) {
  const lines = html("table", {}, offers.map(offerLine));
  return html("details", {}, html("summary", {}, `${offers.length} more`), lines);
}

function groupLine(one) {
  const name = html("td", {}, visible(one.name), html("div", { class: "grey" }, `${one.members.length} nodes`));
  const line = html(
    "tr",
    { class: "link", tabindex: 0, "data-group": one.id },
    name,
    html("td", { class: "act" }, opener(one)),
  );
  const go = () => (one.open ? openMembers(one) : show(one.id));
  line.addEventListener("click", go);
  line.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target === line) go();
  });
  return line;
}

function opener(one) {
  return button(one.open ? "close" : "open", "Draw one box, or all members", (event) => {
    event.stopPropagation();
    toggle(one);
  });
}

function openMembers(one) {
  choose(one.members[0]);
  reveal(one.members[0]);
}

function offerLine(one) {
  const accept = button("accept", "Make this a group", () => group(one.members));
  const told = [
    visible(nameFor(one.members)),
    html("div", { class: "grey" }, one.members.join(" ")),
    html("div", { class: "grey" }, `any two with cosine ≥ ${number(one.cosine)}`),
  ];
  const line = html("tr", {}, html("td", {}, told), html("td", { class: "act" }, accept));
  const light = () => set({ focus: { at: null, edges: [], nodes: new Set(one.members) } });
  line.addEventListener("pointerenter", light);
  line.addEventListener("pointerleave", pointAtNothing);
  return line;
}

function acceptAll() {
  for (const one of proposed()) group(one.members);
}
