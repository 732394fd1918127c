// Keys of the page as a whole; boxes and rows of tables take Enter themselves.
import { choose } from "#choice";
import { get, html } from "#dom";
import { makeGroup } from "#gathering";
import { select, selectNone } from "#groups";
import { current, subscribe } from "#store";
import { fit, reveal, zoomBy } from "#view";

const HELP = [
  ["← → ↑ ↓", "to the next box; from a box, ↑ ↓ change rows"],
  ["Enter", "pin the box: its edges stay lit, and the panel tells all of it"],
  ["Escape", "leave a field, close a list, forget the selection, unpin"],
  ["/", "search ids, labels, tokens and contexts; Enter goes from match to match"],
  ["Shift + click, s", "select a box"],
  ["g", "make a group of what is selected; or look at the groups"],
  ["e", "edit the label or the name of what is pinned"],
  ["+  −  0", "zoom in, zoom out, show all"],
  ["Tab", "to the next box, button or field"],
  ["drop a file", "open the state that was saved in it"],
  ["?", "this list"],
];

const KEYS = {
  "+": () => zoomBy(1.3),
  "=": () => zoomBy(1.3),
  "-": () => zoomBy(1 / 1.3),
  0: fit,
  "/": () => get("search").select(),
  e: () => get("label")?.click(),
  g: groupsKey,
  s: () => atBox() && select(atBox()),
  "?": () => get("keys").showModal(),
  Escape: leave,
};
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export function keyboard() {
  help();
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || get("keys").open) return;
    if (event.target.matches("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur();
    } else if (KEYS[event.key]) {
      event.preventDefault();
      KEYS[event.key]();
    } else if (STEPS[event.key] && inDrawing(event.target)) {
      event.preventDefault();
      step(...STEPS[event.key]);
    }
  });
  // One box is in the order of Tab: the one that was last at; arrows lead to the others.
  subscribe(["boxes", "chosen"], () => queueMicrotask(rove), true);
  get("canvas").addEventListener("focusin", (event) => {
    const box = event.target.closest("[data-node]");
    if (box) rove(box);
  });
}

const inDrawing = (element) => element === document.body || get("canvas").contains(element);
const boxOf = (id) => get("canvas").querySelector(`[data-node="${CSS.escape(id)}"]`);
const atBox = () => document.activeElement?.closest?.("[data-node]")?.dataset.node || current().chosen;

function rove(to = null) {
  const boxes = [...get("canvas").querySelectorAll("[data-node]")];
  const before = boxes.find((box) => box.getAttribute("tabindex") === "0" && box !== to);
  const one = to || boxes.find((box) => box.dataset.node === current().chosen) || before || boxes.at(-1);
  for (const box of boxes) box.setAttribute("tabindex", box === one ? "0" : "-1");
}

function leave() {
  if (current().chosen) choose(null);
  else selectNone();
}

function groupsKey() {
  if (current().selected.size > 1) return makeGroup();
  choose(null);
  get("groups")?.scrollIntoView();
  get("groups")?.focus();
}

// To the nearest box in a direction: along a row, or in the next row that has one.
function step(x, y) {
  const { places } = current().placed;
  const from = places.get(atBox());
  const all = [...places].map(([id, [left, top]]) => ({ id, left, top }));
  const to = from ? nearest(all, from, x, y) : all.reduce((a, b) => (!a || b.top < a.top ? b : a), null);
  if (!to) return;
  const pinned = current().chosen;
  boxOf(to.id).focus({ preventScroll: true });
  if (pinned) choose(to.id);
  reveal(to.id);
}

function nearest(all, [left, top], x, y) {
  const ahead = all.filter((one) => (x ? one.top === top && (one.left - left) * x > 0 : (one.top - top) * y > 0));
  const distance = (one) => (x ? Math.abs(one.left - left) : 1e6 * Math.abs(one.top - top) + Math.abs(one.left - left));
  return ahead.reduce((a, b) => (!a || distance(b) < distance(a) ? b : a), null);
}

function help() {
  const rows = HELP.map(([keys, does]) => html("tr", {}, html("th", {}, keys), html("td", {}, does)));
  const close = html("button", { type: "button" }, "close");
  const dialog = html(
    "dialog",
    { id: "keys", "aria-label": "keys" },
    html("h2", {}, "Keys"),
    html("table", {}, rows),
    close,
  );
  close.addEventListener("click", () => dialog.close());
  document.body.append(dialog);
  const open = html("button", { type: "button", id: "help", title: "Keys (?)", "aria-label": "keys" }, "?");
  open.addEventListener("click", () => dialog.showModal());
  get("tools").append(open);
}
