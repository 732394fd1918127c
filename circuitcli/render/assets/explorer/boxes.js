// A box for each node that is drawn.
import { CARD } from "#arrange";
import { choose, lit, pointAtNode, pointAtNothing } from "#choice";
import { largestEffect, layout } from "#data";
import { svg } from "#dom";
import { current, set, subscribe } from "#store";
import { known, shortened, sign, visible, wrapped } from "#text";
import { hideTip, showTip } from "#tip";
import { FAR, hasMoved } from "#view";
import { aboutNode, caption, figures, place } from "#words";

const kindOf = new Map(layout.rows.map((row) => [row.hook, row.kind]));
const ROOM = 29;
const FAR_ROOM = 17;
const FAR_OUTPUT = 22;
const layer = svg("g", { id: "boxes" });
let drawn = new Map();

export function boxes() {
  listen();
  subscribe(["labels"], () => {
    for (const [id, group] of drawn) {
      if (caption(group.node)[0] === group.label) continue;
      group.remove();
      drawn.delete(id);
    }
    show(current());
  });
  subscribe(["boxes", "placed"], show, true);
  // What the pointer was at may be elsewhere now, or no more there.
  subscribe(["placed"], hideTip);
  subscribe(["boxes", "labels", "view"], write);
  subscribe(["chosen", "focus", "boxes", "shown", "labels"], light, true);
  subscribe(["found", "selected", "boxes", "labels"], ({ found, selected }) => {
    for (const [id, group] of drawn) {
      group.classList.toggle(
        "found",
        found.has(id) || Boolean(group.node.members?.some((member) => found.has(member))),
      );
      group.classList.toggle("selected", selected.has(id));
    }
  });
  return layer;
}

function show({ boxes: nodes, placed }) {
  const before = drawn;
  drawn = new Map();
  for (const node of nodes) {
    const group = before.get(node.id)?.node === node ? before.get(node.id) : box(node);
    const [x, y] = placed.places.get(node.id);
    group.setAttribute("transform", `translate(${x} ${y})`);
    drawn.set(node.id, group);
  }
  for (const [id, group] of before) if (drawn.get(id) !== group) group.remove();
  for (const group of drawn.values()) if (group.parentNode !== layer) layer.append(group);
}

function box(node) {
  const [label] = caption(node);
  const about = { tabindex: -1, role: "button", "aria-label": node.id + " " + visible(label), "data-node": node.id };
  const kind = node.hook ? ` of-${slug(kindOf.get(node.hook))}` : "";
  const card = svg("rect", { class: "card", width: CARD.width, height: CARD.height });
  const group = svg("g", { class: `node ${node.kind}${kind}`, ...about }, card, strip(node));
  group.node = node;
  group.label = label;
  return group;
}

// Boxes get their words once they can be read: a thousand of them are made in half the time without.
function write({ view }) {
  if (view.zoom < FAR) return;
  for (const group of drawn.values()) {
    if (group.isWritten) continue;
    const { node } = group;
    group.append(...(node.hook || node.members ? featureWords(node) : outputWords(node)));
    group.isWritten = true;
  }
}

const slug = (kind) => (kind || "").replace(/\W+/g, "-");

function featureWords(node) {
  const [label, guess] = caption(node);
  const id = shortened(node.members ? `${node.members.length} nodes` : node.feature || node.id, 26);
  const short = known(node.feature) ? node.id.slice(node.id.indexOf("/") + 1) : node.members ? id : node.id;
  const at = svg("tspan", { class: "at" }, shortened(place(node), Math.max(26 - id.length, 4)));
  return [
    svg("text", { class: "id", x: 12, y: 17 }, id, at),
    svg("text", { class: guess ? "label guess" : "label", x: 12, y: 33 }, shortened(label, ROOM)),
    svg("text", { class: "numbers", x: 12, y: 49 }, numbers(node)),
    svg("text", { class: "far id", x: 12, y: 24 }, shortened(short, 15)),
    svg("text", { class: guess ? "far guess" : "far", x: 12, y: 46 }, shortened(label, FAR_ROOM)),
  ];
}

// What the circuit explains is told in full where two lines are enough.
function outputWords(node) {
  const [label] = caption(node);
  const near = wrapped(label, ROOM, 2).map((line, index) => ["label id", 17 + 16 * index, line]);
  const large = wrapped(label, FAR_ROOM, 9);
  const far =
    large.length < 3
      ? large.map((line, index) => ["far", 24 + 22 * index, line])
      : wrapped(label, FAR_OUTPUT, 4).map((line, index) => ["far small", 13 + 13 * index, line]);
  const lines = [...near, ...far].map(([kind, y, line]) => svg("text", { class: kind, x: 12, y }, line));
  return [...lines, svg("text", { class: "numbers", x: 12, y: 49 }, numbers(node))];
}

function numbers(node) {
  return figures(node).map(([text, kind]) => svg("tspan", { class: kind || null }, text));
}

function strip(node) {
  if (!known(node.effect) || largestEffect === 0) return null;
  const opacity = 0.12 + (0.88 * Math.min(Math.abs(node.effect), largestEffect)) / largestEffect;
  return svg("rect", { x: 1, y: 1, width: 5, height: CARD.height - 2, class: "strip " + sign(node.effect), opacity });
}

// One set of listeners for all boxes.
function listen() {
  const at = (event) => event.target.closest(".node")?.node;
  const follow = (kind, act) =>
    layer.addEventListener(kind, (event) => {
      if (at(event)) act(at(event), event);
    });
  // Between parts of one box the pointer does not leave it.
  const within = (event) => event.target.closest(".node") === event.relatedTarget?.closest?.(".node");
  follow("pointerover", (node, event) => {
    if (within(event)) return;
    pointAtNode(node.id);
    showTip(event, aboutNode(node));
  });
  follow("pointerout", (_, event) => {
    if (within(event)) return;
    hideTip();
    pointAtNothing();
  });
  follow("focusin", (node) => pointAtNode(node.id));
  follow("focusout", pointAtNothing);
  follow("click", (node, event) => {
    if (hasMoved()) return;
    if (event.shiftKey && !node.members) set({ selected: toggled(current().selected, node.id) });
    else choose(node.id);
  });
  follow("keydown", (node, event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    choose(node.id);
  });
}

function toggled(ids, id) {
  const changed = new Set(ids);
  if (!changed.delete(id)) changed.add(id);
  return changed;
}

let wasLit = [];
let wasChosen = null;
function light() {
  const now = lit();
  for (const group of wasLit) group.classList.remove("on");
  wasLit = now ? [...now.nodes].map((id) => drawn.get(id)).filter(Boolean) : [];
  for (const group of wasLit) group.classList.add("on");
  wasChosen?.classList.remove("chosen");
  wasChosen = drawn.get(current().chosen) || null;
  wasChosen?.classList.add("chosen");
}
