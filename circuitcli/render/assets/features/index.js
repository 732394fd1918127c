// The index: all features of one coder or of all, searched and sorted; the state is in the address.
import { load } from "#data";
import { get, html, painted } from "#element";
import { heading, onKeys } from "#frame";
import { LongList } from "#list";
import { known, number, percent, visible } from "#text";

// With more features than that only one coder's are shown at once.
const MOST = 60_000;
const COLUMNS = [
  ["id", "feature", 1],
  ["label", "label", 1],
  ["density", "density", -1],
  ["max", "max", -1],
  ["score", "score", -1],
];
const state = { coder: "", find: "", sort: "id", order: 1 };
let rows = null;
let kept = [];
let list = null;

export async function indexPage() {
  const index = await load("index");
  const total = index.coders.reduce((sum, coder) => sum + coder.n_live, 0);
  Object.assign(state, { coder: total > MOST ? index.coders[0].hook : "" }, fromAddress());
  if (state.coder && !index.coders.some((coder) => coder.hook === state.coder))
    state.coder = index.coders[0]?.hook || "";
  heading([[index.run]], html("span", { class: "facts" }, visible(index.model || "")));
  list = new LongList(row);
  get("main").replaceChildren(coders(index), tools(index, total), heads(), list.view);
  get("main").classList.add("tall");
  keys();
  await choose(index);
  painted();
}

function fromAddress() {
  const said = new URLSearchParams(location.hash.slice(1));
  const found = {};
  if (said.has("coder")) found.coder = said.get("coder");
  if (said.has("find")) found.find = said.get("find");
  if (COLUMNS.some(([name]) => name === said.get("sort"))) found.sort = said.get("sort");
  if (said.has("order")) found.order = said.get("order") === "-1" ? -1 : 1;
  return found;
}

function toAddress() {
  const said = new URLSearchParams(Object.entries(state).filter(([, value]) => value !== ""));
  history.replaceState(null, "", `#${said}`);
}

function coders(index) {
  const cards = index.coders.map((coder) => {
    const facts = [
      `${coder.n_live.toLocaleString("en")} features`,
      known(coder.dead) ? `${percent(coder.dead)} never active` : "",
      known(coder.l0) ? `${number(coder.l0)} at a token` : "",
      known(coder.explained_variance) ? `explains ${percent(coder.explained_variance)}` : "",
    ];
    return html(
      "a",
      { href: coder.page, class: "card", "data-coder": coder.hook },
      html("b", {}, coder.places),
      html("small", {}, facts.filter(Boolean).join(" · ")),
    );
  });
  return html("div", { id: "coders" }, cards);
}

function tools(index, total) {
  const choice = html("select", { id: "coder", "aria-label": "coder" });
  if (total <= MOST) choice.append(html("option", { value: "" }, "all coders"));
  for (const coder of index.coders) choice.append(html("option", { value: coder.hook }, coder.hook));
  choice.value = state.coder;
  choice.addEventListener("change", () => {
    state.coder = choice.value;
    choose(index);
  });
  const find = html("input", {
    id: "search",
    type: "search",
    placeholder: "label, token or id  (/)",
    autocomplete: "off",
  });
  find.value = state.find;
  find.addEventListener("input", () => {
    state.find = find.value;
    update();
  });
  return html("div", { class: "tools" }, choice, find, html("output", { id: "counts" }));
}

function heads() {
  const cells = COLUMNS.map(([name, title, order]) => {
    const head = html("button", { type: "button", "data-sort": name, class: `cell ${name}` }, title);
    head.addEventListener("click", () => {
      state.order = state.sort === name ? -state.order : order;
      state.sort = name;
      update();
    });
    return head;
  });
  return html("div", { class: "heads" }, cells);
}

function keys() {
  onKeys({
    "/": () => get("search").focus(),
    Escape: () => get("list").focus(),
    ArrowDown: () => list.step(1),
    ArrowUp: () => list.step(-1),
    PageDown: () => list.step(20),
    PageUp: () => list.step(-20),
  });
  get("search").addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === "ArrowDown") {
      event.preventDefault();
      list.step(1);
    }
  });
}

// The columns of the chosen coders, one below the other.
async function choose(index) {
  const hooks = state.coder ? [state.coder] : index.coders.map((coder) => coder.hook);
  get("counts").textContent = "loading";
  const parts = await Promise.all(hooks.map((hook) => load(`${hook}/rows`)));
  rows = { hook: [], index: [], label: [], density: [], max: [], score: [], words: [] };
  for (const [at, part] of parts.entries()) {
    for (let n = 0; n < part.index.length; n += 1) {
      rows.hook.push(hooks[at]);
      rows.index.push(part.index[n]);
      rows.label.push(part.label[n]);
      rows.density.push(part.density[n]);
      rows.max.push(part.max[n]);
      rows.score.push(part.score[n]);
      rows.words.push(`${hooks[at]}/${part.index[n]} ${part.label[n]}`.toLowerCase());
    }
  }
  get("main").classList.toggle("unscored", !rows.score.some(known));
  update();
}

function update() {
  const wanted = state.find.toLowerCase().split(/\s+/).filter(Boolean);
  kept = [];
  for (let n = 0; n < rows.words.length; n += 1) {
    if (wanted.every((word) => rows.words[n].includes(word))) kept.push(n);
  }
  sort();
  for (const head of document.querySelectorAll("[data-sort]")) {
    const isOne = head.dataset.sort === state.sort;
    head.setAttribute("aria-sort", isOne ? (state.order > 0 ? "ascending" : "descending") : "none");
  }
  get("counts").textContent =
    `${kept.length.toLocaleString("en")} of ${rows.words.length.toLocaleString("en")} features`;
  list.set(kept.length);
  toAddress();
}

// Rows come in the order of their ids, which a stable sort keeps among equals; what is not known comes last.
function sort() {
  const { sort: by, order } = state;
  if (by === "id") return order < 0 ? kept.reverse() : kept;
  const values = by === "label" ? rows.label.map((text) => text.toLowerCase()) : rows[by];
  return kept.sort((a, b) => {
    const [one, other] = [values[a], values[b]];
    if (one === other) return 0;
    if (!known(one) || !known(other)) return known(one) ? -1 : 1;
    return one < other ? -order : order;
  });
}

function row(at) {
  const n = kept[at];
  const id = `${rows.hook[n]}/${rows.index[n]}`;
  const cells = [
    html("span", { class: "cell id" }, id),
    html(
      "span",
      { class: "cell label", dir: "auto", title: visible(rows.label[n]) },
      visible([...rows.label[n].slice(0, 600)].slice(0, 300).join("")),
    ),
    ...["density", "max", "score"].map((name) =>
      html("span", { class: `cell ${name}` }, known(rows[name][n]) ? number(rows[name][n]) : ""),
    ),
  ];
  return html("a", { class: "row", role: "row", href: `feature.html#${id}`, "data-id": id }, cells);
}
