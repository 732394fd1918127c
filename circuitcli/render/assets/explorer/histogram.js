// How often a feature has which activation: bars on a logarithmic axis of activations, as tall as counts' logarithms.
import { html, svg } from "#dom";
import { number } from "#text";

const [WIDTH, HEIGHT, FOOT] = [330, 56, 14];

export function histogramView(histogram, below) {
  const { edges, counts } = histogram;
  const most = counts.reduce((a, b) => Math.max(a, b), 0);
  if (!most) return [];
  const wide = WIDTH / counts.length;
  const bars = counts.map((count, index) => {
    const tall = count ? (HEIGHT * Math.log(1 + count)) / Math.log(1 + most) : 0;
    const at = { x: index * wide, y: HEIGHT - tall, width: Math.max(wide - 1, 0.5), height: tall };
    const range = `${number(edges[index])} to ${number(edges[index + 1])}: ${count.toLocaleString("en")} tokens`;
    return svg("rect", { class: below ? "bar below" : "bar", ...at }, svg("title", {}, range));
  });
  const label = (text, x, anchor) => svg("text", { x, y: HEIGHT + FOOT - 2, "text-anchor": anchor }, text);
  const middle = Math.floor(edges.length / 2);
  const picture = svg(
    "svg",
    {
      class: "histogram",
      viewBox: `0 0 ${WIDTH} ${HEIGHT + FOOT}`,
      role: "img",
      "aria-label": `${below ? "codes below zero" : "activations"} from ${number(edges[0])} to ${number(edges.at(-1))}`,
    },
    bars,
    svg("line", { x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT }),
    label(number(edges[0]), 0, "start"),
    label(number(edges[middle]), middle * wide, "middle"),
    label(number(edges.at(-1)), WIDTH, "end"),
  );
  return [html("h3", {}, "how often it is how active (both axes logarithmic)"), picture];
}
