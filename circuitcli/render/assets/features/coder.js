// The page of a coder: how good it is, how often its features are active, how they lie, how it learned.
import { curve, histogram } from "#charts";
import { carried, load } from "#data";
import { get, html, painted, section, table } from "#element";
import { heading, onKeys } from "#frame";
import { known, number, percent, visible } from "#text";

const CURVES = {
  loss: "loss",
  fvu: "variance not explained",
  l0: "features active at a token",
  dead: "share of dead features",
  learning_rate: "learning rate",
};
const HISTOGRAMS = {
  density: ["How often features are active", "share of tokens, logarithmic axis"],
  decoder: ["Nearest decoder of the same coder", "cosine"],
  encoder: ["Encoder and decoder of a feature", "cosine"],
};

export async function coderPage() {
  const [index, coder] = [await load("index"), await load(`${carried.hook}/coder`)];
  heading(
    [[index.run, "index.html"], [carried.hook]],
    html("a", { href: `index.html#coder=${encodeURIComponent(carried.hook)}`, id: "features" }, "all its features"),
  );
  const leave = () => location.assign("index.html");
  onKeys({ "/": leave, Escape: leave });
  get("main").replaceChildren(
    html("h1", {}, visible(coder.places), " ", html("small", {}, visible(coder.architecture))),
    section("facts", "Numbers", facts(coder)),
    section("histograms", "Features", html("div", { class: "charts" }, histograms(coder))),
    section("curves", "Training", html("div", { class: "charts" }, curves(coder.curves))),
  );
  painted();
}

function facts(coder) {
  const rows = coder.facts.map(([name, value, kind]) => [name, written(value, kind)]);
  return table(["", ""], rows, { class: "facts-table" });
}

function written(value, kind) {
  if (typeof value === "string") return visible(value);
  if (kind === "share") return percent(value);
  return Number.isInteger(value) ? value.toLocaleString("en") : number(value) + (kind ? ` ${kind}` : "");
}

function histograms(coder) {
  return Object.entries(HISTOGRAMS)
    .filter(([name]) => known(coder.histograms[name]))
    .map(([name, [title, unit]]) => histogram(coder.histograms[name], { title, unit }));
}

function curves(found) {
  if (!found) return [];
  return Object.entries(CURVES)
    .filter(([name]) => found[name])
    .map(([name, title]) => curve(found.step, found[name], { title, unit: "over steps" }));
}
