// The page of a feature: of the one that the address names, or of those that the page carries.
import { histogram } from "#charts";
import { carried, load } from "#data";
import { get, html, painted, section, table } from "#element";
import { heading, onKeys, problem } from "#frame";
import { known, number, percent, signed, visible } from "#text";
import { context } from "#tokens";

const QUANTILES = { 0.5: "median", 0.9: "90 %", 0.99: "99 %" };
let shown = null;

export async function featurePage() {
  if (carried.features) {
    heading([[carried.run], ...carried.features.slice(0, 3).map((feature) => [feature.id])]);
    get("main").replaceChildren(
      ...carried.features.map((feature) => article(feature, (id) => html("span", { class: "id" }, visible(id)))),
    );
    return painted();
  }
  const index = await load("index");
  window.addEventListener("hashchange", () => show(index));
  onKeys({
    ArrowLeft: () => go(shown?.before),
    ArrowRight: () => go(shown?.after),
    "/": () => go(null),
    Escape: () => go(null),
  });
  return show(index);
}

function go(id) {
  if (id) location.hash = id;
  else if (id === null) location.href = "index.html";
}

// The feature that the address names; what is no address names none.
function asked() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

async function show(index) {
  const [hook, number_] = asked().split("/");
  const coder = index.coders.find((one) => one.hook === hook);
  delete document.documentElement.dataset.ready;
  shown = null;
  if (!coder || !/^\d+$/.test(number_ || "")) {
    heading([[index.run, "index.html"], ["no feature"]]);
    const there = index.coders.map((one) => [html("a", { href: one.page }, one.hook), " "]);
    problem(
      "The address names no feature: write feature.html#HOOK/NUMBER. Features were described at",
      html("p", {}, there),
    );
    return painted();
  }
  const feature = Number(number_);
  const parts = [
    [index.run, "index.html"],
    [coder.hook, coder.page],
  ];
  const chunk = await chunkOf(coder, feature, index.chunk);
  shown = chunk[feature] || null;
  heading([...parts, [number_]], shown ? steps(shown) : []);
  document.title = `${hook}/${feature} – ${index.run}`;
  if (shown) get("main").replaceChildren(article(shown, link));
  else problem(absent(coder, feature));
  window.scrollTo(0, 0);
  return painted();
}

// The features near this one; files that would hold none, as most of a dead coder's would, are not there.
async function chunkOf(coder, feature, size) {
  const at = Math.floor(feature / size);
  return feature >= coder.d_sae || coder.empty.includes(at) ? {} : load(`${coder.hook}/${at}`);
}

function absent(coder, feature) {
  if (feature >= coder.d_sae)
    return `There is no feature ${coder.hook}/${feature}: the coder has 0 to ${coder.d_sae - 1}.`;
  return `Feature ${coder.hook}/${feature} never fired on the tokens that were looked at.`;
}

const link = (id) => html("a", { href: `feature.html#${id}`, class: "id" }, visible(id));

function steps(feature) {
  return [
    feature.before
      ? html("a", { href: `#${feature.before}`, id: "before", title: "The feature before (←)" }, "←")
      : null,
    feature.after ? html("a", { href: `#${feature.after}`, id: "after", title: "The next feature (→)" }, "→") : null,
  ];
}

function article(feature, linked) {
  return html(
    "article",
    { "data-feature": feature.id },
    html(
      "h1",
      {},
      html("span", { class: "id" }, visible(feature.id)),
      " ",
      html("span", { id: "label", dir: "auto" }, visible(feature.label || "")),
    ),
    labelFacts(feature),
    html(
      "div",
      { class: "columns" },
      html("div", {}, side(feature, "max"), negative(feature), ablation(feature)),
      html("div", {}, aside(feature, linked)),
    ),
  );
}

function labelFacts(feature) {
  const source = { model: "written by a model", hand: "written by hand", neuronpedia: "from Neuronpedia" };
  const facts = [`label ${source[feature.label_source] || "by rules over contexts and tokens"}`];
  const accuracy = feature.label_score ?? feature.score?.balanced_accuracy;
  if (known(accuracy)) {
    const other = feature.score?.exchanged;
    facts.push(
      `tells where the feature is active with balanced accuracy ${number(accuracy)}` +
        (known(other) ? ` (another label ${number(other)})` : " (0.5 is chance)"),
    );
  }
  return html("p", { class: "facts", "data-facts": "label" }, facts.join(" · "));
}

function side(one, extreme) {
  const largest = Math.abs(one[extreme] ?? 0);
  const facts = [
    known(one.density) ? `active at ${share(one.density)} of tokens` : "",
    known(one.n_active) ? `${one.n_active.toLocaleString("en")} times` : "",
    known(one[extreme]) ? `${extreme} ${number(one[extreme])}` : "",
    known(one.mean) ? `mean ${number(one.mean)}` : "",
    ...Object.entries(one.quantiles || {})
      .filter(([name]) => QUANTILES[name])
      .map(([name, value]) => `${QUANTILES[name]} ${number(value)}`),
  ];
  return [
    html("p", { class: "facts", "data-facts": "activation" }, facts.filter(Boolean).join(" · ")),
    one.histogram
      ? section(
          "histogram",
          "Activations",
          histogram(one.histogram, { title: "where active", unit: "logarithmic axis" }),
        )
      : null,
    contexts(one, largest),
  ];
}

const share = (value) => (value < 0.001 ? number(100 * value) + " %" : percent(value));

// The strongest contexts, and those at lower quantiles of the feature's activations; as schema.py.
const STRONG = 0.95;

function contexts(one, largest) {
  const groups = new Map();
  for (const [at, found] of (one.contexts || []).entries()) {
    const isStrong = !known(found.quantile) || found.quantile >= STRONG;
    const name = isStrong ? "Where it is strongest" : "At lower quantiles of its activation";
    const item = context(found, largest, isStrong ? changed(one.ablation?.contexts?.[at]) : null);
    groups.set(name, [...(groups.get(name) || []), item]);
  }
  return [...groups].map(([name, items]) => section("contexts", name, html("ol", { class: "contexts" }, items)));
}

function changed(one) {
  if (!one) return null;
  const loss = known(one.loss) ? `, loss ${signed(one.loss)}` : "";
  const next = known(one.following) ? `, then “${visible(one.following)}”` : "";
  return html(
    "small",
    { class: "changed", title: "What ablating the feature does here, in nats" },
    `KL ${number(one.divergence)}${loss}${next}`,
  );
}

function negative(feature) {
  if (!feature.negative) return null;
  return section(
    "negative",
    "Where its code is below zero",
    html("p", {}, visible(feature.negative.label || "")),
    side(feature.negative, "min"),
  );
}

function ablation(feature) {
  const found = feature.ablation;
  if (!found) return null;
  const loss = known(found.loss) ? ` and the loss on what follows by ${signed(found.loss)} nats` : "";
  const about = `Taking it away on its strongest contexts changes the next token's distribution by KL ${number(found.divergence)} nats${loss}, on average. Tokens that become`;
  return section(
    "ablation",
    "When ablated",
    html("p", {}, about),
    html("div", { class: "pair" }, pairs("less likely", found.lowered), pairs("more likely", found.raised)),
    found.note ? html("p", { class: "facts" }, found.note) : null,
  );
}

function pairs(title, found, attributes) {
  const most = Math.max(...found.map(([, value]) => Math.abs(value)), 1e-12);
  const rows = found.map(([text, value]) => [
    html("code", {}, visible(text)),
    html(
      "span",
      {
        class: `effect ${value < 0 ? "negative" : "positive"}`,
        style: `--share: ${Math.round((100 * Math.abs(value)) / most)}%`,
      },
      signed(value),
    ),
  ]);
  const order = "In logits for each unit of activation; first what other features move less.";
  return found.length ? html("div", attributes, html("h3", { title: order }, title), table(["token", ""], rows)) : null;
}

function aside(feature, linked) {
  const norms = Object.entries(feature.decoder_norms || {}).map(([name, value]) => `${visible(name)} ${number(value)}`);
  return [
    section(
      "logits",
      "On the way straight to the logits",
      html(
        "div",
        { class: "pair" },
        pairs("promoted", feature.promoted || []),
        pairs("suppressed", feature.suppressed || []),
      ),
    ),
    section(
      "decoders",
      "Nearest decoders",
      (feature.decoders || []).map((near) => related(near, "cosine", linked)),
    ),
    section(
      "codes",
      "Active together with",
      (feature.codes || []).map((near) => related(near, "correlation", linked)),
    ),
    norms.length ? section("written", "Written to", html("p", {}, norms.join(" · "))) : null,
  ];
}

function related(near, measure, linked) {
  const rows = near.features.map(([id, value, label]) => [
    linked(id),
    number(value),
    html("span", { dir: "auto" }, visible(label || "")),
  ]);
  return html(
    "div",
    { "data-near": near.hook },
    html("h3", {}, near.hook),
    table(["feature", measure, "label"], rows, { class: "related" }),
  );
}
