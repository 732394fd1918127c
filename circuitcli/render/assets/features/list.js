// A list of any length: only the rows in view are elements.
import { html } from "#element";

const ROW = 28;
// Rows that are made beyond the view, and rows at most that are printed.
const SPARE = 12;
const PRINTED = 2000;

// make: number of a row -> its element. Rows are drawn again when they change.
export class LongList {
  constructor(make) {
    this.make = make;
    this.n = 0;
    this.inside = html("div", { class: "rows", role: "rowgroup" });
    this.view = html("div", { id: "list", tabindex: "0", role: "table", "aria-label": "features" }, this.inside);
    this.view.addEventListener("scroll", () => this.draw(), { passive: true });
    window.addEventListener("resize", () => this.draw());
    window.addEventListener("beforeprint", () => this.fill(0, Math.min(this.n, PRINTED)));
    window.addEventListener("afterprint", () => this.draw());
  }

  set(n) {
    this.n = n;
    this.inside.style.height = `${n * ROW}px`;
    this.view.scrollTop = 0;
    this.draw();
  }

  draw() {
    const first = Math.max(0, Math.floor(this.view.scrollTop / ROW) - SPARE);
    const count = Math.ceil(this.view.clientHeight / ROW) + 2 * SPARE;
    this.fill(first, Math.min(this.n, first + count));
  }

  fill(first, last) {
    const focused = document.activeElement?.dataset?.row;
    this.inside.style.paddingTop = `${first * ROW}px`;
    const rows = Array.from({ length: Math.max(0, last - first) }, (_, at) => this.row(first + at));
    this.inside.replaceChildren(...rows);
    if (focused !== undefined) this.inside.querySelector(`[data-row="${focused}"]`)?.focus({ preventScroll: true });
  }

  row(at) {
    const made = this.make(at);
    made.dataset.row = String(at);
    return made;
  }

  // Move the focus by so many rows from the one that has it.
  step(by) {
    const from = Number(document.activeElement?.dataset?.row ?? (by > 0 ? -1 : 0));
    const at = Math.max(0, Math.min(this.n - 1, from + by));
    const [top, bottom] = [at * ROW, (at + 1) * ROW];
    if (top < this.view.scrollTop) this.view.scrollTop = top;
    if (bottom > this.view.scrollTop + this.view.clientHeight) this.view.scrollTop = bottom - this.view.clientHeight;
    this.draw();
    this.inside.querySelector(`[data-row="${at}"]`)?.focus({ preventScroll: true });
  }
}
