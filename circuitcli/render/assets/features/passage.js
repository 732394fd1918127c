// A text with the features that are active in it: a token shows its features, a feature shades the tokens.
import { carried } from "#data";
import { button, get, html, painted, table } from "#element";
import { heading, onKeys } from "#frame";
import { known, number, visible } from "#text";
import { token } from "#tokens";

const state = { feature: null, at: null, coder: "" };
let byToken = [];
const LISTED = 200;

export function textPage() {
  heading([[carried.run], [carried.title]]);
  byToken = carried.tokens.map(() => []);
  for (const feature of carried.features) {
    feature.strongest = Math.max(...feature.activations.map(([, value]) => Math.abs(value)));
    for (const [at, value] of feature.activations) byToken[at]?.push([feature, value]);
  }
  get("main").replaceChildren(
    html(
      "div",
      { class: "tools" },
      coderChoice(),
      html("input", { id: "search", type: "search", placeholder: "label or id  (/)", autocomplete: "off" }),
      html("output", { id: "counts" }),
    ),
    html("p", { id: "passage", dir: "auto" }),
    html("div", { class: "columns even" }, html("div", { id: "token" }), html("div", { id: "features" })),
  );
  get("search").addEventListener("input", drawList);
  onKeys({
    "/": () => get("search").focus(),
    Escape: () => choose({ feature: null, at: null }),
    ArrowLeft: () => step(-1),
    ArrowRight: () => step(1),
  });
  choose({ at: carried.tokens.length - 1 });
  painted();
}

function coderChoice() {
  const hooks = [...new Set(carried.features.map((feature) => feature.hook))];
  const made = html(
    "select",
    { id: "coder", "aria-label": "coder" },
    html("option", { value: "" }, "all coders"),
    hooks.map((hook) => html("option", { value: hook }, hook)),
  );
  made.addEventListener("change", () => choose({ coder: made.value }));
  return made;
}

function choose(change) {
  Object.assign(state, change);
  draw();
}

function step(by) {
  const last = carried.tokens.length - 1;
  choose({ at: state.at === null ? (by > 0 ? 0 : last) : Math.max(0, Math.min(last, state.at + by)) });
}

function draw() {
  drawText();
  drawToken();
  drawList();
}

function drawText() {
  const values = new Map(state.feature ? state.feature.activations : []);
  const spans = carried.tokens.map((text, at) => {
    const made = token(text, values.get(at) || 0, state.feature?.strongest || 0, {
      "data-token": at,
      tabindex: "0",
      role: "button",
    });
    if (at === state.at) made.setAttribute("data-chosen", "");
    made.addEventListener("click", () => choose({ at }));
    made.addEventListener("keydown", (event) => {
      if (event.key === "Enter") choose({ at });
    });
    // A line that ends in the text ends here too.
    return text.includes("\n") ? [made, "\n"] : [made];
  });
  get("passage").replaceChildren(...spans.flat());
}

const isWanted = (feature) => !state.coder || feature.hook === state.coder;

function drawToken() {
  if (state.at === null) {
    get("token").replaceChildren(
      html(
        "p",
        { class: "facts" },
        "Choose a token to see which features are active there (← →), or a feature to shade the text by it.",
      ),
    );
    return;
  }
  const found = byToken[state.at]
    .filter(([feature]) => isWanted(feature))
    .sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  const rows = found.map(([feature, value]) => [
    named(feature),
    number(value),
    html("span", { dir: "auto" }, visible(feature.label)),
  ]);
  get("token").replaceChildren(
    html(
      "h2",
      {},
      "At ",
      html("code", {}, visible(carried.tokens[state.at])),
      html("small", {}, ` token ${carried.positions[state.at]}`),
    ),
    rows.length
      ? table(["feature", "activation", "label"], rows, { class: "related" })
      : html("p", { class: "facts" }, "No feature is listed here."),
  );
}

function named(feature) {
  return button(
    visible(feature.id),
    "Shade the text by this feature",
    () => choose({ feature: state.feature === feature ? null : feature }),
    {
      class: "id",
      "data-feature": feature.id,
      "aria-pressed": String(state.feature === feature),
    },
  );
}

function drawList() {
  const wanted = get("search").value.toLowerCase();
  const all = carried.features.filter(
    (feature) => isWanted(feature) && `${feature.id} ${feature.label}`.toLowerCase().includes(wanted),
  );
  const rows = all
    .slice(0, LISTED)
    .map((feature) => [
      named(feature),
      String(feature.activations.length),
      number(feature.strongest),
      html("span", { dir: "auto" }, visible(feature.label)),
    ]);
  const more = all.length > LISTED ? `, of which ${LISTED} are listed` : "";
  get("counts").textContent =
    `${all.length.toLocaleString("en")} features${more}` +
    (known(carried.left_out) && carried.left_out
      ? `; ${carried.left_out.toLocaleString("en")} weaker ones are left out`
      : "");
  get("features").replaceChildren(
    html("h2", {}, "In the whole text"),
    table(["feature", "tokens", "largest", "label"], rows, { class: "related" }),
  );
}
