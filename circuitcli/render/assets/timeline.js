// Everything is drawn already; this shows one checkpoint at a time. Text from outside is set as textContent only.
const { unit, frames, lines, margins } = JSON.parse(document.getElementById("data").textContent);
const get = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const slider = get("slider"),
  detail = get("detail"),
  play = get("play");
const markers = all(".marker"),
  indexed = all("[data-index]"),
  followed = all("[data-line]"),
  edges = all(".edge");
let current = frames.length - 1,
  chosen = null,
  timer = null;

function show(index) {
  current = Math.min(Math.max(index, 0), frames.length - 1);
  slider.value = current;
  slider.setAttribute("aria-valuetext", frames[current].name);
  get("now").textContent = "step " + frames[current].step;
  for (const element of indexed) element.classList.toggle("current", Number(element.dataset.index) === current);
  for (const marker of markers) {
    const box = marker.ownerSVGElement.viewBox.baseVal,
      [left, right] = margins;
    const x = left + (box.width - left - right) * (frames.length > 1 ? current / (frames.length - 1) : 0.5);
    marker.setAttribute("x1", x);
    marker.setAttribute("x2", x);
  }
  if (chosen !== null) describe();
}

function choose(line) {
  chosen = line === chosen ? null : line;
  const touching = new Set();
  for (const edge of edges) {
    const ends = edge.dataset.lines.split(" ").filter(Boolean).map(Number);
    const on = chosen !== null && ends.includes(chosen);
    edge.classList.toggle("on", on);
    if (on) touching.add(edge.closest("svg")).add(edge);
  }
  const near = new Map();
  for (const edge of touching) {
    if (!edge.dataset || edge.dataset.lines === undefined) continue;
    const svg = edge.closest("svg");
    if (!near.has(svg)) near.set(svg, new Set());
    for (const end of edge.dataset.lines.split(" ").filter(Boolean)) near.get(svg).add(Number(end));
  }
  for (const element of followed) {
    const own = Number(element.dataset.line),
      svg = element.closest("svg");
    element.classList.toggle("chosen", own === chosen);
    element.classList.toggle("on", near.has(svg) && near.get(svg).has(own));
  }
  document.body.classList.toggle("following", chosen !== null);
  detail.hidden = chosen === null;
  if (chosen !== null) describe();
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

const signed = (value) => (value < 0 ? "\u2212" : "+") + Math.abs(value).toPrecision(3);

function describe() {
  const line = lines[chosen],
    table = element("table"),
    head = element("tr");
  const name = line.indices.length ? "feature" : "error term";
  const title = element(
    "h3",
    `${line.hook}: a ${name}, followed from step ${frames[line.first].step} to ${frames[line.last].step}`,
  );
  for (const text of ["step", "is", "effect (" + unit + ")", "label"]) head.append(element("th", text));
  table.append(head);
  frames.forEach((frame, index) => {
    const node = frame.nodes.find((one) => one.line === chosen),
      row = element("tr");
    const known = line.indices[index - line.first];
    const is = node
      ? node.id
      : known === undefined || index > line.last
        ? "not matched"
        : `${line.hook}/${known}, not in the circuit`;
    row.className = index === current ? "current" : "";
    row.append(element("td", frame.step), element("td", is));
    const effect = node && node.effect !== null ? node.effect : null;
    row.append(
      element("td", effect === null ? "" : signed(effect), effect === null ? "" : effect < 0 ? "negative" : "positive"),
    );
    row.append(element("td", node ? node.label : ""));
    table.append(row);
  });
  detail.replaceChildren(title, table);
}

function stop() {
  clearInterval(timer);
  timer = null;
  play.textContent = "play";
}

function toggle() {
  if (timer !== null) return stop();
  if (current === frames.length - 1) show(0);
  play.textContent = "stop";
  timer = setInterval(() => (current < frames.length - 1 ? show(current + 1) : stop()), 1100);
}

const keys = {
  ArrowLeft: () => show(current - 1),
  ArrowRight: () => show(current + 1),
  Home: () => show(0),
  End: () => show(frames.length - 1),
  " ": toggle,
  Escape: () => chosen !== null && choose(chosen),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.tagName === "BUTTON" && (event.key === " " || event.key === "Enter")) return;
  const line = event.target.closest?.("[data-line]");
  const act =
    (event.key === "Enter" || event.key === " ") && line ? () => choose(Number(line.dataset.line)) : keys[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});
document.addEventListener("click", (event) => {
  const line = event.target.closest("[data-line]"),
    at = event.target.closest("tr[data-index], .column");
  if (line && !line.classList.contains("ghost")) choose(Number(line.dataset.line));
  else if (at) show(Number(at.dataset.index));
});
slider.addEventListener("input", () => show(Number(slider.value)));
get("first").addEventListener("click", () => show(0));
get("before").addEventListener("click", () => show(current - 1));
get("after").addEventListener("click", () => show(current + 1));
play.addEventListener("click", toggle);

document.body.classList.add("live");
get("controls").hidden = false;
const named = frames.findIndex((frame) => "#" + encodeURIComponent(frame.name) === location.hash);
show(named < 0 ? frames.length - 1 : named);
document.documentElement.dataset.ready = "1";
