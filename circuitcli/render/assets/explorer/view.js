// What part of the drawing is seen, and how large.
import { CARD } from "#arrange";
import { get } from "#dom";
import { margins } from "#grid";
import { current, set, subscribe } from "#store";

// Below the first boxes have fewer and larger letters, below the second none.
const DISTANT = 0.66;
export const FAR = 0.2;
let moved = false;
let fitted = true;

// Whether the pointer dragged the drawing since it went down, so that its release is no click.
export const hasMoved = () => moved;

// Whether all is shown, as large as can be.
export const isFitted = () => fitted;

export const move = (x, y) => setView(current().view.x + x, current().view.y + y, current().view.zoom);

export function setView(x, y, zoom) {
  fitted = false;
  set({ view: { x, y, zoom } });
}

export function zoomAt(factor, x, y) {
  const { view } = current();
  const zoom = Math.min(Math.max(view.zoom * factor, 0.02), 6);
  const ratio = zoom / view.zoom;
  setView(x - (x - view.x) * ratio, y - (y - view.y) * ratio, zoom);
}

export function zoomBy(factor) {
  const { size } = current();
  zoomAt(factor, size.width / 2, size.height / 2);
}

export function fit() {
  const { placed, size } = current();
  const { left, bottom } = margins(placed);
  const [width, height] = [size.width - left - 8, size.height - bottom - 8];
  const zoom = Math.max(0.02, Math.min(width / placed.width, height / placed.bottom, 1.4));
  setView(left + Math.max(0, (width - placed.width * zoom) / 2), 8, zoom);
  fitted = true;
}

// Moves the drawing so that the box of a node is seen; nearer, where it has no letters.
export function reveal(id) {
  const place = current().placed.places.get(id);
  if (!place) return;
  const { view, placed, size } = current();
  const { left, bottom } = margins(placed);
  const { width, height } = size;
  const zoom = view.zoom < FAR ? FAR * 2 : view.zoom;
  const [x, y] = [place[0] * view.zoom + view.x, place[1] * view.zoom + view.y];
  const inside = x > left && y > 0 && x + CARD.width * zoom < width && y + CARD.height * zoom < height - bottom;
  if (inside && zoom === view.zoom) return;
  setView(width / 2 - (place[0] + CARD.width / 2) * zoom, height / 2 - (place[1] + CARD.height / 2) * zoom, zoom);
}

export function followPointer(world) {
  const canvas = get("canvas");
  subscribe(["view"], ({ view: { x, y, zoom } }) => {
    world.setAttribute("transform", `translate(${x} ${y}) scale(${zoom})`);
    canvas.classList.toggle("distant", zoom < DISTANT);
    canvas.classList.toggle("farther", zoom < FAR);
  });
  subscribe(["placed", "printing"], () => {
    if (fitted || current().printing) fit();
  });
  canvas.addEventListener("wheel", zoomByWheel, { passive: false });
  dragBy(canvas);
  get("fit").addEventListener("click", fit);
  get("closer").addEventListener("click", () => zoomBy(1.3));
  get("farther").addEventListener("click", () => zoomBy(1 / 1.3));
  new ResizeObserver(measure).observe(canvas);
  measure();
}

// The size is kept: to ask for it while boxes change makes the browser lay out the page each time.
function measure() {
  // Paper shows what the screen did, scaled: see appearance.js.
  if (current().printing) return;
  const canvas = get("canvas");
  set({ size: { width: canvas.clientWidth, height: canvas.clientHeight } });
  if (fitted) fit();
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
    start = { x: event.clientX, y: event.clientY, view: current().view };
    moved = false;
  });
  window.addEventListener("pointermove", (event) => {
    if (!start) return;
    const [x, y] = [event.clientX - start.x, event.clientY - start.y];
    if (Math.hypot(x, y) > 4) {
      moved = true;
      canvas.classList.add("moving");
    }
    if (moved) setView(start.view.x + x, start.view.y + y, start.view.zoom);
  });
  window.addEventListener("pointerup", () => {
    start = null;
    canvas.classList.remove("moving");
  });
}
