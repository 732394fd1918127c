// What part of the drawing is seen, and how large.
import { layout } from "#data";
import { get } from "#dom";
import { cardHeight, cardWidth, corner } from "#geometry";

const DISTANT = 0.66;
let view = { x: 0, y: 0, zoom: 1 };
let moved = false;
let fitted = true;
let world = null;

// Whether the pointer dragged the drawing since it went down, so that its release is no click.
export const hasMoved = () => moved;

export function setView(x, y, zoom) {
  view = { x, y, zoom };
  world.setAttribute("transform", `translate(${x} ${y}) scale(${zoom})`);
  get("canvas").classList.toggle("distant", zoom < DISTANT);
}

export function move(x, y) {
  fitted = false;
  setView(view.x + x, view.y + y, view.zoom);
}

export function zoomAt(factor, x, y) {
  fitted = false;
  const zoom = Math.min(Math.max(view.zoom * factor, 0.03), 6);
  const ratio = zoom / view.zoom;
  setView(x - (x - view.x) * ratio, y - (y - view.y) * ratio, zoom);
}

export function zoomBy(factor) {
  const canvas = get("canvas");
  zoomAt(factor, canvas.clientWidth / 2, canvas.clientHeight / 2);
}

export function fit() {
  const box = get("canvas").getBoundingClientRect();
  const legend = get("legend").offsetHeight + 18;
  const zoom = Math.min((box.width - 16) / layout.width, (box.height - legend - 8) / layout.height, 1.4);
  setView(Math.max(8, (box.width - layout.width * zoom) / 2), 8, zoom);
  fitted = true;
}

// Moves the drawing so that the box of a node is seen.
export function reveal(id) {
  const box = get("canvas").getBoundingClientRect();
  const [x, y] = corner(id);
  const left = x * view.zoom + view.x;
  const top = y * view.zoom + view.y;
  const [right, bottom] = [left + cardWidth * view.zoom, top + cardHeight * view.zoom];
  if (left > 0 && top > 0 && right < box.width && bottom < box.height - 90) return;
  fitted = false;
  const [middleX, middleY] = [(x + cardWidth / 2) * view.zoom, (y + cardHeight / 2) * view.zoom];
  setView(box.width / 2 - middleX, box.height / 2 - middleY, view.zoom);
}

export function followPointer(drawing) {
  world = drawing;
  const canvas = get("canvas");
  canvas.addEventListener("wheel", zoomByWheel, { passive: false });
  dragBy(canvas);
  get("fit").addEventListener("click", fit);
  get("closer").addEventListener("click", () => zoomBy(1.3));
  get("farther").addEventListener("click", () => zoomBy(1 / 1.3));
  new ResizeObserver(() => {
    if (fitted) fit();
  }).observe(canvas);
}

function zoomByWheel(event) {
  event.preventDefault();
  const box = get("canvas").getBoundingClientRect();
  const factor = Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015));
  zoomAt(factor, event.clientX - box.left, event.clientY - box.top);
}

function dragBy(canvas) {
  let start = null;
  canvas.addEventListener("pointerdown", (event) => {
    start = { x: event.clientX, y: event.clientY, view };
    moved = false;
  });
  window.addEventListener("pointermove", (event) => {
    if (!start) return;
    const [x, y] = [event.clientX - start.x, event.clientY - start.y];
    if (Math.hypot(x, y) > 4) {
      moved = true;
      fitted = false;
      canvas.classList.add("moving");
    }
    if (moved) setView(start.view.x + x, start.view.y + y, view.zoom);
  });
  window.addEventListener("pointerup", () => {
    start = null;
    canvas.classList.remove("moving");
  });
}
