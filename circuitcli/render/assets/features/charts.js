// Small charts: bars of a histogram, and lines over steps.
import { html, svg } from "#element";
import { number } from "#text";

const WIDTH = 420;
const HEIGHT = 120;
const LEFT = 46;
const BOTTOM = 20;
const TOP = 8;
const RIGHT = 22;

// Bars are equally wide, as the edges of log-spaced bins are on a logarithmic axis.
export function histogram({ edges, counts }, { unit, title, marks = [] }) {
  const most = Math.max(...counts, 1);
  const room = WIDTH - LEFT - RIGHT;
  const width = room / counts.length;
  const height = (count) => (count ? Math.max(1, (count / most) * (HEIGHT - BOTTOM - TOP)) : 0);
  const bars = counts.map((count, at) => {
    const tall = height(count);
    const about = `${number(edges[at])} to ${number(edges[at + 1])}: ${count.toLocaleString("en")}`;
    const bar = {
      x: LEFT + at * width + 0.5,
      y: HEIGHT - BOTTOM - tall,
      width: Math.max(width - 1, 0.5),
      height: tall,
    };
    return svg("rect", { class: "bar", ...bar }, svg("title", {}, about));
  });
  const ticks = chosen(edges.length).map((at) => tick(LEFT + at * width, number(edges[at])));
  const lines = marks.map(({ at, name }) => mark(LEFT + placed(edges, at) * width, name));
  const label = svg(
    "text",
    { class: "tick", x: LEFT - 4, y: TOP + 8, "text-anchor": "end" },
    most.toLocaleString("en"),
  );
  return chart([axis(), bars, lines, ticks, label], title, unit);
}

function axis() {
  return svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM });
}

function chart(inside, title, unit) {
  const drawn = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title, class: "chart" },
    inside,
  );
  return html("figure", {}, html("figcaption", {}, title, unit ? html("small", {}, ` ${unit}`) : null), drawn);
}

function tick(x, text) {
  return svg("text", { class: "tick", x, y: HEIGHT - BOTTOM + 13, "text-anchor": "middle" }, text);
}

function mark(x, name) {
  const line = svg("line", { class: "mark", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM });
  return svg("g", {}, line, svg("title", {}, name));
}

// About six of so many edges.
function chosen(n) {
  const step = Math.max(1, Math.ceil((n - 1) / 6));
  return Array.from({ length: Math.floor((n - 1) / step) + 1 }, (_, at) => at * step);
}

function placed(edges, value) {
  const next = edges.findIndex((edge) => edge > value);
  if (next <= 0) return next ? edges.length - 1 : 0;
  return next - 1 + (value - edges[next - 1]) / (edges[next] - edges[next - 1]);
}

// curves: one line of values over steps; what is null has no point.
export function curve(steps, values, { title, unit }) {
  const known = values.map((value, at) => [steps[at], value]).filter(([, value]) => value !== null);
  if (known.length < 2) return null;
  const [low, high] = reach(known.map(([, value]) => value));
  const [first, last] = [known[0][0], known[known.length - 1][0]];
  const x = (step) => LEFT + ((step - first) / (last - first || 1)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - BOTTOM - TOP);
  const points = known.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  const labels = [low, high].map((value) =>
    svg("text", { class: "tick", x: LEFT - 4, y: y(value) + 4, "text-anchor": "end" }, number(value)),
  );
  const ends = [first, last].map((step) => tick(x(step), step.toLocaleString("en")));
  return chart([axis(), svg("polyline", { class: "curve", points }), labels, ends], title, unit);
}

function reach(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  if (low !== high) return [low, high];
  // A constant: what is never negative has no axis below nothing.
  return low ? [low - Math.abs(low) / 2, low + Math.abs(low) / 2] : [0, 1];
}
