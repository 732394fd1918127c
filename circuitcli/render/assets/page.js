"use strict";
// Text from outside reaches the page through textContent and attributes only, never as markup.
const { document: circuit, layout, facts, reading, conditions, kinds, metric } = JSON.parse(document.getElementById("data").textContent);
const [cardWidth, cardHeight] = layout.card;
const get = (id) => document.getElementById(id);
const canvas = get("canvas"), panel = get("panel"), tip = get("tip"), slider = get("slider"), search = get("search");
const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) if (value !== null) element.setAttribute(name, value);
  for (const child of children.flat(Infinity)) if (child !== null) element.append(child);
  return element;
}
const html = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const SIGNS = { "\n": "↵", "\r": "␍", "\t": "⇥", "\u00a0": "⍽", "\u007f": "␡" };
const HIDDEN = /[\u0000-\u001f\u007f-\u00a0\u061c\u200b\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069\ufeff]/g;
function visible(text) {
  return text.replace(HIDDEN, (c) => SIGNS[c] || (c < " " ? String.fromCharCode(0x2400 + c.charCodeAt(0)) : "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0")));
}
const columns = (c) => (/[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60]|\p{Extended_Pictographic}/u.test(c) ? 2 : 1);
function shortened(text, room) {
  const kept = [];
  const all = Array.from(visible(text));
  let used = 0;
  for (const c of all) {
    used += columns(c);
    if (used > room) return kept.slice(0, -1).join("") + "…";
    kept.push(c);
  }
  return kept.join("");
}
function number(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(3)));
}
const signed = (value, unit) => (value < 0 ? "" : "+") + number(value) + (unit ? " " + unit : "");
const measured = (value, error, unit) => (known(error) ? `${signed(value)} ± ${Number(error.toPrecision(2))}${unit ? " " + unit : ""}` : signed(value, unit));
const inPrompts = (share) => (known(share) ? `, in ${Math.round(100 * share)} % of prompts` : "");
const sign = (value) => (value < 0 ? "negative" : "positive");
const known = (value) => value !== null && value !== undefined;
const percent = (share) => (100 * share).toFixed(1) + " %";

const nodes = new Map(circuit.nodes.map((node) => [node.id, node]));
const edges = circuit.edges.slice().sort((a, b) => a.strength - b.strength);
const incoming = new Map(), outgoing = new Map();
for (const id of nodes.keys()) incoming.set(id, []), outgoing.set(id, []);
for (const edge of edges) incoming.get(edge.target).unshift(edge), outgoing.get(edge.source).unshift(edge);
let chosen = null, shown = edges.filter((edge) => edge.drawn).length;
const isShown = (edge) => edge.order >= edges.length - shown;
edges.forEach((edge, order) => (edge.order = order));

const world = svg("g"), bands = svg("g"), lines = svg("g"), cards = svg("g"), numbers = svg("g");
const drawnEdges = new Map(), drawnNodes = new Map();

function drawGrid() {
  layout.rows.forEach((row) => {
    if (row.shaded) bands.append(svg("rect", { class: "band", x: 0, y: row.y, width: layout.width, height: row.height }));
    bands.append(svg("text", { class: "hook", x: 8, y: row.y + row.height / 2 + 4, fill: row.kind ? kinds[row.kind][1] : "#2c7a2c" }, row.hook));
  });
  const { bottom } = layout;
  for (const column of layout.columns) {
    if (column.skipped) {
      const skip = svg("text", { class: "skip", x: column.x - 28, y: bottom + 20 }, "⋯");
      skip.append(svg("title", {}, column.skipped + " positions without nodes"));
      bands.append(skip);
    }
    if (!known(column.position)) continue;
    bands.append(svg("line", { class: "column", x1: column.x - 13, x2: column.x - 13, y1: 0, y2: layout.height }));
    column.titles.forEach((title, line) => bands.append(svg("text", { class: "place", x: column.x + column.width / 2, y: bottom + 18 + 22 * line }, title)));
  }
}

const corner = (id) => layout.places[id];
const middleOf = (id) => corner(id)[0] + cardWidth / 2;
const routes = new Map(circuit.edges.map((edge, index) => [edge, layout.routes[index]]));
// The same curves as render/routes.py looks at: straight up at each point, and straight through the gaps between cards.
function path(edge) {
  const points = routes.get(edge), alone = points.length === 2;
  const parts = points.slice(1).map(([x, y], index) => {
    const [x0, y0] = points[index], size = Math.abs(y0 - y) * 0.45, bend = alone ? Math.max(30, size) : size;
    return `C${x0},${y0 - bend} ${x},${y + bend} ${x},${y}`;
  });
  return `M${points[0]}${parts.join("")}`;
}

function drawEdge(edge) {
  const d = path(edge);
  const line = svg("path", { class: "edge " + sign(edge.weight), d, "stroke-width": edge.width, "stroke-opacity": edge.opacity, "marker-end": edge.strength >= 0.1 ? `url(#${sign(edge.weight)})` : null });
  const reach = svg("path", { class: "reach", d });
  reach.addEventListener("pointerenter", (event) => { if (!chosen) emphasise([edge], [edge.source, edge.target]); showTip(event, describe(edge)); });
  reach.addEventListener("pointerleave", () => { tip.hidden = true; restore(); });
  reach.addEventListener("click", () => choose(edge.target));
  lines.append(line, reach);
  drawnEdges.set(edge, { line, reach });
}
const describe = (edge) => `${visible(edge.source)} → ${visible(edge.target)}   ${measured(edge.weight, edge.standard_error, edge.unit)}${inPrompts(edge.active)}${byHead(edge.heads)}`;
function byHead(heads) {
  const parts = Object.entries(heads || {}).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, 4);
  return parts.length ? "   by head: " + parts.map(([name, value]) => `${name} ${signed(value)}`).join(", ") : "";
}

function caption(node) {
  if (node.kind === "output") return [visible(metric), false];
  if (node.kind === "logit") return [`output "${visible(node.token || "")}"`, false];
  if (node.kind === "token") return ["token embedding", true];
  if (node.kind === "error") return ["unexplained part", true];
  const details = node.details;
  if (details && details.label) return [details.label, false];
  if (details && details.promoted.length) return ["▲ " + details.promoted.slice(0, 4).map((pair) => pair[0]).join(" "), true];
  return ["", true];
}
function figures(node) {
  if (node.kind === "output") return [[`clean ${number(circuit.graph.metric_clean)}, baseline ${number(circuit.graph.metric_baseline)} ${circuit.graph.unit}`, ""]];
  const parts = [];
  if (known(node.probability)) parts.push([`probability ${number(node.probability)}`, ""]);
  if (known(node.effect)) parts.push([measured(node.effect, node.standard_error, known(node.standard_error) ? "" : node.unit), sign(node.effect)]);
  if (known(node.active)) parts.push([`  in ${Math.round(100 * node.active)} %`, ""]);
  else if (known(node.activation)) parts.push([(parts.length ? "  activation " : "activation ") + number(node.activation), ""]);
  return parts;
}

const kindOf = new Map(layout.rows.map((row) => [row.hook, row.kind]));
function drawNode(node) {
  const [x, y] = corner(node.id), [label, guess] = caption(node);
  const at = node.kind === "output" || node.kind === "logit" ? "" : known(node.position) ? "@" + node.position + (known(node.token) ? ` "${node.token}"` : "") : "";
  const id = node.feature || node.id;
  const group = svg("g", { class: "node " + node.kind, transform: `translate(${x} ${y})`, tabindex: 0, role: "button", "aria-label": node.id + " " + visible(label) },
    svg("rect", { class: "card", width: cardWidth, height: cardHeight, fill: node.hook ? kinds[kindOf.get(node.hook)][0] : null }),
    known(node.effect) && largestEffect > 0 ? svg("rect", { x: 1, y: 1, width: 5, height: cardHeight - 2, fill: `var(--${sign(node.effect)})`, opacity: 0.12 + 0.88 * Math.abs(node.effect) / largestEffect }) : null,
    svg("text", { class: "id", x: 12, y: 17 }, id, svg("tspan", { class: "at" }, shortened(at, 26 - id.length))),
    svg("text", { class: guess ? "label guess" : "label", x: 12, y: 33 }, shortened(label, 29)),
    svg("text", { class: "numbers", x: 12, y: 49 }, figures(node).map(([text, kind]) => svg("tspan", { fill: kind ? `var(--${kind})` : null }, text))),
    svg("text", { class: "far id", x: 12, y: 24 }, shortened(known(node.feature) ? node.id.slice(node.id.indexOf("/") + 1) : node.id, 15)),
    svg("text", { class: guess ? "far guess" : "far", x: 12, y: 46 }, shortened(label, 17)));
  group.addEventListener("pointerenter", (event) => { if (!chosen) emphasiseNode(node.id); showTip(event, tipOf(node, label)); });
  group.addEventListener("pointerleave", () => { tip.hidden = true; restore(); });
  group.addEventListener("focus", () => { if (!chosen) emphasiseNode(node.id); });
  group.addEventListener("blur", restore);
  group.addEventListener("click", () => { if (!moved) choose(node.id); });
  group.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(node.id); } });
  cards.append(group);
  drawnNodes.set(node.id, group);
}
function tipOf(node, label) {
  const effect = known(node.effect) ? "\neffect " + measured(node.effect, node.standard_error, node.unit) + inPrompts(node.active) : "";
  return visible(node.id) + (label ? "\n" + visible(label) : "") + effect;
}
const largestEffect = Math.max(0, ...circuit.nodes.map((node) => Math.abs(node.effect || 0)));

function marker(kind) {
  return svg("marker", { id: kind, viewBox: "0 0 6 6", refX: 4, refY: 3, markerUnits: "userSpaceOnUse", markerWidth: 9, markerHeight: 9, orient: "auto" },
    svg("path", { d: "M0,0L6,3L0,6z", fill: `var(--${kind})`, "fill-opacity": 0.75 }));
}

function emphasise(someEdges, someNodes, focus = null) {
  clear();
  focusId = focus;
  canvas.classList.add("dim");
  const visibleEdges = someEdges.filter(isShown);
  for (const edge of visibleEdges) for (const part of [drawnEdges.get(edge).line, drawnEdges.get(edge).reach]) part.classList.add("on");
  for (const id of someNodes) drawnNodes.get(id).classList.add("on");
  writeWeights(visibleEdges.slice().sort((a, b) => b.strength - a.strength).slice(0, FEW));
}
const FEW = 24;
function writeWeights(someEdges) {
  numbers.replaceChildren(...someEdges.map((edge) => {
    const { line } = drawnEdges.get(edge), { x, y } = line.getPointAtLength(line.getTotalLength() * (edge.target === focusId ? 0.3 : 0.7));
    return svg("text", { class: "weight " + sign(edge.weight), x, y }, signed(edge.weight));
  }));
}
let focusId = null;
function emphasiseNode(id) {
  const around = [...incoming.get(id), ...outgoing.get(id)].filter(isShown);
  emphasise(around, new Set([id, ...around.flatMap((edge) => [edge.source, edge.target])]), id);
}
function clear() {
  canvas.classList.remove("dim");
  focusId = null;
  writeWeights(shown <= FEW ? edges.filter(isShown) : []);
  for (const element of canvas.querySelectorAll(".on")) element.classList.remove("on");
}
function restore() {
  if (chosen) emphasiseNode(chosen);
  else clear();
}
function choose(id) {
  if (chosen) drawnNodes.get(chosen).classList.remove("chosen");
  chosen = id;
  if (id) drawnNodes.get(id).classList.add("chosen");
  panel.replaceChildren(...(id ? nodePanel(nodes.get(id)) : overview()));
  panel.scrollTop = 0;
  restore();
  for (const token of document.querySelectorAll("#prompt .token")) token.classList.toggle("at", Boolean(id) && Number(token.dataset.position) === nodes.get(id).position);
}
function showTip(event, text) {
  const box = get("stage").getBoundingClientRect();
  tip.textContent = text;
  tip.hidden = false;
  tip.style.left = Math.max(0, Math.min(event.clientX - box.left + 14, box.width - tip.offsetWidth - 8)) + "px";
  tip.style.top = Math.max(0, Math.min(event.clientY - box.top + 16, box.height - tip.offsetHeight - 8)) + "px";
}

const cell = (text, kind) => html("td", { class: kind || null }, text);
function numberCell(value, error, active) {
  const told = [known(error) ? "± " + Number(error.toPrecision(2)) : null, known(active) ? Math.round(100 * active) + " %" : null].filter(known);
  return html("td", { class: "number" }, html("span", { class: sign(value) }, signed(value)), told.length ? html("div", { class: "grey" }, told.join(", ")) : null);
}
function rows(pairs) {
  return html("table", {}, pairs.filter((pair) => known(pair[1])).map(([name, value]) => html("tr", {}, html("th", {}, name), html("td", {}, value))));
}
function edgeTable(title, list, end) {
  if (!list.length) return [html("h3", {}, title + ": none")];
  const total = list.length;
  return [html("h3", {}, `${title} (${total})`), html("table", {}, list.map((edge) => {
    const node = nodes.get(edge[end]);
    const line = html("tr", { class: "link", tabindex: 0, title: describe(edge) }, numberCell(edge.weight, edge.standard_error, edge.active), cell(edge.unit, "unit"),
      html("td", {}, node.id + (known(node.token) ? ` "${visible(node.token)}"` : ""), html("div", { class: "grey" }, visible(caption(node)[0]))));
    line.addEventListener("click", () => { choose(node.id); reveal(node.id); });
    line.addEventListener("keydown", (event) => { if (event.key === "Enter") { choose(node.id); reveal(node.id); } });
    return line;
  }))];
}
function shade(activation, largest) {
  const share = largest > 0 ? Math.min(Math.abs(activation) / largest, 1) : 0;
  return `rgba(${activation < 0 ? "255, 140, 93" : "93, 130, 255"}, ${(0.8 * share).toFixed(3)})`;
}
function contextView(context, largest) {
  const view = html("div", { class: "context" });
  context.tokens.forEach((token, index) => {
    const activation = context.activations[index] || 0;
    const span = html("span", { title: `${JSON.stringify(token)}  ${number(activation)}`, class: index === context.peak ? "peak" : null }, visible(token));
    if (activation !== 0) span.style.background = shade(activation, largest);
    view.append(span);
  });
  const peak = context.activations[context.peak];
  const where = [known(peak) ? "peak " + number(peak) : null, known(context.block) ? "block " + context.block : null, known(context.position) ? "position " + context.position : null];
  view.append(html("small", {}, where.filter(known).join(", ")));
  return view;
}
function logits(title, pairs, kind) {
  if (!pairs.length) return [];
  return [html("h3", {}, title), html("div", { class: "logits" }, pairs.map(([token, value]) => html("span", { class: kind, title: JSON.stringify(token) }, visible(token), html("small", {}, signed(value)))))];
}
// Statistics and contexts of the codes of one sign.
function sideView(side, title, furthest) {
  const below = furthest < 0;
  const largest = Math.abs(furthest || 0) || Math.max(0, ...side.contexts.flatMap((context) => context.activations.map(Math.abs)));
  const quantiles = Object.entries(side.quantiles).sort((a, b) => a[0] - b[0]);
  return [
    html("h3", {}, title),
    rows([["density", known(side.density) ? number(100 * side.density) + " % of tokens" : null], ["active tokens", known(side.n_active) ? String(side.n_active) : null],
      [below ? "lowest" : "largest", known(furthest) ? number(furthest) : null], ["mean when active", known(side.mean) ? number(side.mean) : null]]),
    ...(quantiles.length ? [html("h3", {}, "quantiles of its activation"), html("table", {}, html("tr", {}, quantiles.map(([q]) => html("th", {}, q))), html("tr", {}, quantiles.map(([, value]) => cell(number(value)))))] : []),
    ...(side.contexts.length ? [html("h3", {}, below ? "where it is lowest" : "where it is most active"), ...side.contexts.map((context) => contextView(context, largest))] : []),
  ];
}
function featureView(details) {
  const { negative } = details;
  return [
    ...logits("promotes (logits)", details.promoted, "up"),
    ...logits("suppresses (logits)", details.suppressed, "down"),
    ...(details.decoder_norms ? [html("h3", {}, "written to (length of its decoder row)"), rows(Object.entries(details.decoder_norms).map(([hook, norm]) => [hook, number(norm)]))] : []),
    ...sideView(details, negative ? "its codes above zero" : "the feature", details.max),
    ...(negative ? sideView(negative, "its codes below zero: " + visible(negative.label), negative.min) : []),
  ];
}
function nodePanel(node) {
  const details = node.details;
  const close = html("button", { type: "button", title: "Back to the overview (Escape)" }, "overview");
  close.addEventListener("click", () => choose(null));
  const edgeTables = [...edgeTable("into it, from", incoming.get(node.id), "source"), ...edgeTable("from it, to", outgoing.get(node.id), "target")];
  return [
    html("div", { style: "float:right" }, close),
    html("h2", {}, node.id),
    details && details.label ? html("div", {}, visible(details.label)) : null,
    rows([["token", known(node.token) ? `"${visible(node.token)}"` + (known(node.position) ? ` at position ${node.position}` : "") : null],
      ["probability", known(node.probability) ? number(node.probability) : null],
      ["influence on the logits", known(node.influence) ? number(node.influence) : null],
      ["span", typeof node.position === "string" ? node.position : null],
      ["effect", known(node.effect) ? html("span", { class: sign(node.effect) }, measured(node.effect, node.standard_error, node.unit)) : null],
      ["active", known(node.active) ? `in ${percent(node.active)} of the prompts` : null],
      [circuit.graph.n_prompts > 1 ? "mean activation" : "activation", known(node.activation) ? number(node.activation) : null],
      ["written to", node.kind === "feature" && circuit.graph.writes && circuit.graph.writes[node.hook] ? circuit.graph.writes[node.hook].join(" ") : null],
      ["metric", node.kind === "output" ? visible(metric) : null],
      ["clean", node.kind === "output" ? signed(circuit.graph.metric_clean, circuit.graph.unit) : null],
      ["baseline", node.kind === "output" ? signed(circuit.graph.metric_baseline, circuit.graph.unit) : null]]),
    ...(details ? featureView(details) : node.kind === "feature" ? [html("p", { class: "grey" }, "Nothing is known about this feature; circuit interp describes features.")] : []),
    ...edgeTables,
  ].filter((part) => part !== null);
}
function scoreTable() {
  if (!circuit.scores.length) return [];
  return [html("h3", {}, "scores"), html("table", {}, circuit.scores.map((score, index) => html("tr", {},
    html("td", {}, score.name, html("div", { class: "grey" }, Object.entries(conditions[index]).map(([name, value]) => `${name} ${value}`).join(", "))),
    cell(number(score.value), "number"), cell(known(score.low) && known(score.high) ? `${number(score.low)} to ${number(score.high)}` : "", "number grey"))))];
}
function strongestNodes() {
  const ranked = circuit.nodes.filter((node) => known(node.effect)).sort((a, b) => Math.abs(b.effect) - Math.abs(a.effect)).slice(0, 15);
  if (!ranked.length) return [];
  return [html("h3", {}, "largest effects on the metric"), html("table", {}, ranked.map((node) => {
    const line = html("tr", { class: "link", tabindex: 0 }, numberCell(node.effect, node.standard_error, node.active), cell(node.unit || "", "unit"), html("td", {}, node.id + (known(node.token) ? ` "${visible(node.token)}"` : ""), html("div", { class: "grey" }, visible(caption(node)[0]))));
    line.addEventListener("click", () => { choose(node.id); reveal(node.id); });
    line.addEventListener("keydown", (event) => { if (event.key === "Enter") { choose(node.id); reveal(node.id); } });
    return line;
  }))];
}
function overview() {
  const { graph } = circuit;
  return [
    html("h2", {}, visible(graph.name)),
    rows([["metric", visible(metric)], ["clean", signed(graph.metric_clean, graph.unit)], ["baseline", `${signed(graph.metric_baseline, graph.unit)} (${graph.baseline})`],
      ["prompts", graph.n_prompts > 1 ? `${graph.n_prompts.toLocaleString("en")}${graph.prompts ? " of " + visible(graph.prompts) : ""}; numbers are means ± standard error, and the share of prompts in which they are not zero` : null],
      ["replacement", known(graph.replacement) ? number(graph.replacement) : null],
      ["completeness", known(graph.completeness) ? `${number(graph.completeness)}, of nodes with inputs ${number(graph.completeness_of_inputs)}` : null],
      ["active", known(graph.n_active) ? `${graph.n_active.toLocaleString("en")} features, ${graph.n_expanded.toLocaleString("en")} expanded` : null],
      ["model", graph.model], ["method", graph.method], ["positions", graph.positions], ["numbers", graph.dtype], ["size", `${circuit.nodes.length} nodes, ${circuit.edges.length} edges`]]),
    ...scoreTable(), ...strongestNodes(),
    html("p", { class: "grey" }, "Point at a box or an edge for its numbers; click a box for all that is known about it. Keys: / find, + and - zoom, 0 fit, arrows move, Tab and Enter choose, Escape back."),
  ];
}

function drawHeading() {
  const used = new Set(circuit.nodes.map((node) => node.position));
  const { graph } = circuit, columns = graph.columns || (graph.n_prompts > 1 ? [] : graph.tokens.map((token) => [token]));
  const prompt = html("div", { id: "prompt", "aria-label": "prompt" }, columns.map((tokens, position) => {
    const lines = tokens.map((token) => html("div", {}, visible(token) || " "));
    const view = html("span", { class: used.has(position) ? "token used" : "token", "data-position": position, title: tokens.map((token) => JSON.stringify(token)).join("  ") }, lines, html("small", {}, String(position)));
    if (used.has(position)) view.addEventListener("click", () => { const at = circuit.nodes.filter((node) => node.position === position).map((node) => node.id); choose(null); emphasise([], new Set(at)); });
    return view;
  }));
  if (!graph.tokens.length && graph.n_prompts === 1) prompt.append(visible(graph.prompt));
  get("heading").append(html("h1", {}, visible(graph.name)), html("span", { class: "fact" }, facts.join("  ·  ")), prompt);
}
function drawLegend() {
  const sample = (item) => [html("td", {}, svg("svg", { width: 42, height: 10, "aria-hidden": "true" }, svg("line", { x1: 0, x2: 42, y1: 5, y2: 5, stroke: `var(--${sign(item.weight)})`, "stroke-width": item.width, "stroke-opacity": item.opacity }))), html("td", { class: "sample" }, signed(item.weight))];
  const table = html("table", {}, circuit.scales.map((scale) => html("tr", {}, html("td", {}, "edges in " + scale.unit), scale.samples.map(sample))));
  const there = Object.entries(kinds), boxes = there.length > 1 ? html("div", { class: "kinds" }, "boxes ", there.map(([kind, [fill, ink]]) => html("span", { style: `background:${fill};color:${ink};border-color:${ink}` }, kind))) : null;
  get("legend").append(table, ...(boxes ? [boxes] : []), html("div", { class: "note" }, reading + (largestEffect > 0 ? ` Strip at the left of a box: effect on the metric, full colour at ${number(largestEffect)}.` : "")));
}

function showEdges(count) {
  shown = count;
  for (const edge of edges) for (const part of [drawnEdges.get(edge).line, drawnEdges.get(edge).reach]) part.style.display = isShown(edge) ? "" : "none";
  const kept = edges.filter(isShown);
  const shares = circuit.scales.map(({ unit }) => {
    const size = (list) => list.filter((edge) => edge.unit === unit).reduce((sum, edge) => sum + Math.abs(edge.weight), 0);
    const least = Math.min(...kept.filter((edge) => edge.unit === unit).map((edge) => Math.abs(edge.weight)));
    return Number.isFinite(least) && size(edges) > 0 ? `|weight| ≥ ${number(least)} ${unit}, ${percent(size(kept) / size(edges))} of the total` : "";
  });
  get("kept").replaceChildren(...[`${kept.length} of ${edges.length} edges`, ...shares.filter(Boolean)].map((line) => html("div", {}, line)));
  restore();
}
function find(text) {
  const wanted = text.trim().toLowerCase();
  const hits = [];
  for (const node of circuit.nodes) {
    const where = [node.id, node.token || "", ...(node.details ? [node.details.label, ...node.details.promoted.map((pair) => pair[0]), ...node.details.contexts.map((context) => context.tokens[context.peak] || "")] : [])];
    const hit = wanted !== "" && where.some((part) => part.toLowerCase().includes(wanted));
    drawnNodes.get(node.id).classList.toggle("found", hit);
    if (hit) hits.push(node.id);
  }
  get("found").textContent = wanted ? hits.length + " found" : "";
  return hits;
}

let view = { x: 0, y: 0, zoom: 1 }, moved = false, fitted = true;
const setView = (x, y, zoom) => { view = { x, y, zoom }; world.setAttribute("transform", `translate(${x} ${y}) scale(${zoom})`); canvas.classList.toggle("distant", zoom < 0.66); };
function zoomAt(factor, x, y) {
  fitted = false;
  const zoom = Math.min(Math.max(view.zoom * factor, 0.03), 6), ratio = zoom / view.zoom;
  setView(x - (x - view.x) * ratio, y - (y - view.y) * ratio, zoom);
}
function fit() {
  const box = canvas.getBoundingClientRect(), legend = get("legend").offsetHeight + 18;
  const zoom = Math.min((box.width - 16) / layout.width, (box.height - legend - 8) / layout.height, 1.4);
  setView(Math.max(8, (box.width - layout.width * zoom) / 2), 8, zoom);
  fitted = true;
}
function reveal(id) {
  const box = canvas.getBoundingClientRect(), [x, y] = corner(id);
  const left = x * view.zoom + view.x, top = y * view.zoom + view.y;
  const inside = left > 0 && top > 0 && left + cardWidth * view.zoom < box.width && top + cardHeight * view.zoom < box.height - 90;
  if (!inside) fitted = false;
  if (!inside) setView(box.width / 2 - (x + cardWidth / 2) * view.zoom, box.height / 2 - (y + cardHeight / 2) * view.zoom, view.zoom);
}
function listen() {
  const at = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  const middle = () => [canvas.clientWidth / 2, canvas.clientHeight / 2];
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoomAt(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), ...at(event)); }, { passive: false });
  let start = null;
  canvas.addEventListener("pointerdown", (event) => { start = [event.clientX - view.x, event.clientY - view.y, event.clientX, event.clientY]; moved = false; });
  window.addEventListener("pointermove", (event) => {
    if (!start) return;
    if (Math.hypot(event.clientX - start[2], event.clientY - start[3]) > 4) { moved = true; fitted = false; canvas.classList.add("moving"); }
    if (moved) setView(event.clientX - start[0], event.clientY - start[1], view.zoom);
  });
  window.addEventListener("pointerup", () => { start = null; canvas.classList.remove("moving"); });
  canvas.addEventListener("click", (event) => { if (!moved && !event.target.closest(".node, .reach")) choose(null); });
  get("fit").addEventListener("click", fit);
  get("closer").addEventListener("click", () => zoomAt(1.3, ...middle()));
  get("farther").addEventListener("click", () => zoomAt(1 / 1.3, ...middle()));
  slider.addEventListener("input", () => showEdges(Number(slider.value)));
  let last = -1;
  search.addEventListener("input", () => { last = -1; find(search.value); });
  search.addEventListener("keydown", (event) => {
    const hits = event.key === "Enter" ? find(search.value) : [];
    if (hits.length) { last = (last + 1) % hits.length; choose(hits[last]); reveal(hits[last]); }
  });
  const keys = { "+": () => zoomAt(1.3, ...middle()), "=": () => zoomAt(1.3, ...middle()), "-": () => zoomAt(1 / 1.3, ...middle()), 0: fit, "/": () => search.focus(), Escape: () => choose(null) };
  const steps = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target instanceof HTMLInputElement) { if (event.key === "Escape") event.target.blur(); return; }
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
    else if (steps[event.key] && canvas.contains(event.target)) { event.preventDefault(); setView(view.x + steps[event.key][0], view.y + steps[event.key][1], view.zoom); }
  });
}

canvas.append(svg("defs", {}, marker("positive"), marker("negative")), world);
world.append(bands, lines, cards, numbers);
drawHeading();
drawLegend();
drawGrid();
edges.forEach(drawEdge);
circuit.nodes.forEach(drawNode);
slider.max = String(edges.length);
slider.value = String(shown);
showEdges(shown);
choose(location.hash && nodes.has(decodeURIComponent(location.hash.slice(1))) ? decodeURIComponent(location.hash.slice(1)) : null);
fit();
new ResizeObserver(() => { if (fitted) fit(); }).observe(canvas);
listen();
