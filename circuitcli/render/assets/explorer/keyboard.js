// Keys of the page as a whole; boxes and rows of tables take Enter themselves.
import { choose } from "#choice";
import { get } from "#dom";
import { fit, move, zoomBy } from "#view";

const KEYS = {
  "+": () => zoomBy(1.3),
  "=": () => zoomBy(1.3),
  "-": () => zoomBy(1 / 1.3),
  0: fit,
  "/": () => get("search").focus(),
  Escape: () => choose(null),
};
const STEPS = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };

export function keyboard() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target instanceof HTMLInputElement) {
      if (event.key === "Escape") event.target.blur();
    } else if (KEYS[event.key]) {
      event.preventDefault();
      KEYS[event.key]();
    } else if (STEPS[event.key] && get("canvas").contains(event.target)) {
      event.preventDefault();
      move(...STEPS[event.key]);
    }
  });
}
