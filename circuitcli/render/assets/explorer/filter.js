// Which edges are drawn, and what they are of the whole.
import { circuit, edges } from "#data";
import { get, html } from "#dom";
import { set } from "#store";
import { number, percent } from "#text";

export function filter() {
  const slider = get("edge-share");
  slider.max = String(edges.length);
  slider.value = String(edges.filter((edge) => edge.drawn).length);
  slider.addEventListener("input", () => show(Number(slider.value)));
  show(Number(slider.value));
}

function show(count) {
  const kept = count ? edges.slice(-count) : [];
  const counts = [`${kept.length} of ${edges.length} edges`, ...circuit.scales.map(({ unit }) => share(kept, unit))];
  get("counts").replaceChildren(...counts.filter(Boolean).map((line) => html("div", {}, line)));
  set({ shown: kept });
}

function share(kept, unit) {
  const sizes = (list) => list.filter((edge) => edge.unit === unit).map((edge) => Math.abs(edge.weight));
  const sum = (list) => sizes(list).reduce((total, size) => total + size, 0);
  const least = sizes(kept).reduce((a, b) => Math.min(a, b), Infinity);
  if (!Number.isFinite(least) || sum(edges) === 0) return "";
  return `|weight| ≥ ${number(least)} ${unit}, ${percent(sum(kept) / sum(edges))} of the total`;
}
