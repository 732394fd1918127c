// A box for each node.
import { choose, lit, pointAtNode, pointAtNothing } from "#choice";
import { circuit, kinds, largestEffect, layout } from "#data";
import { svg } from "#dom";
import { cardHeight, cardWidth, corner } from "#geometry";
import { current, subscribe } from "#store";
import { known, shortened, sign, visible } from "#text";
import { hideTip, showTip } from "#tip";
import { hasMoved } from "#view";
import { aboutNode, caption, figures, place } from "#words";

const kindOf = new Map(layout.rows.map((row) => [row.hook, row.kind]));
const drawn = new Map();

export function boxes() {
  const layer = svg("g");
  for (const node of circuit.nodes) {
    const group = box(node);
    listen(group, node);
    drawn.set(node.id, group);
    layer.append(group);
  }
  subscribe(["chosen", "focus", "shown"], () => light());
  subscribe(["found"], ({ found }) => {
    for (const [id, group] of drawn) group.classList.toggle("found", found.has(id));
  });
  return layer;
}

function box(node) {
  const [x, y] = corner(node.id);
  const [label, guess] = caption(node);
  const id = node.feature || node.id;
  const short = known(node.feature) ? node.id.slice(node.id.indexOf("/") + 1) : node.id;
  const about = {
    class: "node " + node.kind,
    transform: `translate(${x} ${y})`,
    tabindex: 0,
    role: "button",
    "aria-label": node.id + " " + visible(label),
    "data-node": node.id,
  };
  const numbers = figures(node).map(([text, kind]) => svg("tspan", { fill: kind ? `var(--${kind})` : null }, text));
  const at = svg("tspan", { class: "at" }, shortened(place(node), 26 - id.length));
  return svg(
    "g",
    about,
    svg("rect", { class: "card", width: cardWidth, height: cardHeight, fill: colour(node) }),
    strip(node),
    svg("text", { class: "id", x: 12, y: 17 }, id, at),
    svg("text", { class: guess ? "label guess" : "label", x: 12, y: 33 }, shortened(label, 29)),
    svg("text", { class: "numbers", x: 12, y: 49 }, numbers),
    svg("text", { class: "far id", x: 12, y: 24 }, shortened(short, 15)),
    svg("text", { class: guess ? "far guess" : "far", x: 12, y: 46 }, shortened(label, 17)),
  );
}

const colour = (node) => (node.hook ? kinds[kindOf.get(node.hook)][0] : null);

function strip(node) {
  if (!known(node.effect) || largestEffect === 0) return null;
  const opacity = 0.12 + (0.88 * Math.abs(node.effect)) / largestEffect;
  return svg("rect", { x: 1, y: 1, width: 5, height: cardHeight - 2, fill: `var(--${sign(node.effect)})`, opacity });
}

function listen(group, node) {
  group.addEventListener("pointerenter", (event) => {
    pointAtNode(node.id);
    showTip(event, aboutNode(node));
  });
  group.addEventListener("pointerleave", () => {
    hideTip();
    pointAtNothing();
  });
  group.addEventListener("focus", () => pointAtNode(node.id));
  group.addEventListener("blur", pointAtNothing);
  group.addEventListener("click", () => {
    if (!hasMoved()) choose(node.id);
  });
  group.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    choose(node.id);
  });
}

let wasLit = [];
let wasChosen = null;
function light() {
  const now = lit();
  for (const group of wasLit) group.classList.remove("on");
  wasLit = now ? [...now.nodes].map((id) => drawn.get(id)) : [];
  for (const group of wasLit) group.classList.add("on");
  mark();
}

function mark() {
  wasChosen?.classList.remove("chosen");
  wasChosen = drawn.get(current().chosen) || null;
  wasChosen?.classList.add("chosen");
}
