// What the reader has done to the page, as render/state.py describes it: in the page's URL, so that a copied link opens
// the same view, and as a file that `circuit render --state` reads.
import { choose, nodeOf } from "#choice";
import { circuit, nodes, state as opened } from "#data";
import { get, html } from "#dom";
import { group, isGroup } from "#groups";
import { current, set, subscribe } from "#store";
import { fit, isFitted, setView } from "#view";

const FORMAT = 1;
const WRITTEN_AFTER_MS = 300;
const KEYS = ["by", "chosen", "edgeCount", "groups", "hidden", "inOneColumn", "labels", "nodeCount", "theme", "view"];
const MARK = "#s=";
let usual = null;
let usualEdges = 0;
let waiting = null;
let applying = false;

export function state() {
  usual = snapshot();
  usualEdges = current().edgeCount;
  buttons();
  const asked = location.hash ? fromHash(location.hash) : opened;
  if (asked) apply(asked);
  subscribe(KEYS, () => {
    if (applying) return;
    clearTimeout(waiting);
    waiting = setTimeout(write, WRITTEN_AFTER_MS);
  });
  takeDropped();
  window.addEventListener("hashchange", () => {
    const there = fromHash(location.hash);
    if (there) apply(there);
  });
}

export function snapshot() {
  const { by, chosen, edgeCount, groups, hidden, inOneColumn, labels, nodeCount, theme, view } = current();
  const round = (value) => Number(value.toPrecision(5));
  return {
    format: FORMAT,
    graph: circuit.graph.name,
    pinned: chosen && isGroup(chosen) ? null : chosen,
    by,
    nodes: nodeCount >= circuit.nodes.length ? null : nodeCount,
    edges: edgeCount >= circuit.edges.length ? null : edgeCount,
    groups: groups.map(({ name, members, open }) => ({ name, members, open })),
    labels: Object.fromEntries(labels),
    hidden: [...hidden],
    in_one_column: inOneColumn,
    theme: theme === "auto" ? null : theme,
    zoom: isFitted() ? null : [view.x, view.y, view.zoom].map(round),
  };
}

// A state from anywhere: what it says wrongly, or of what is not here, is left as it is.
export function apply(asked) {
  applying = true;
  try {
    const count = (value, usualCount) => (Number.isInteger(value) && value >= 0 ? value : usualCount);
    const list = (value) => (Array.isArray(value) ? value : []);
    set({
      by: asked.by === "influence" ? "influence" : "effect",
      nodeCount: asked.nodes === null ? Infinity : count(asked.nodes, Infinity),
      edgeCount: asked.edges === null ? circuit.edges.length : count(asked.edges, usualEdges),
      labels: new Map(Object.entries(asked.labels || {}).filter(([, text]) => typeof text === "string")),
      hidden: new Set(list(asked.hidden).filter((kind) => typeof kind === "string")),
      inOneColumn: asked.in_one_column === true,
      theme: ["light", "dark"].includes(asked.theme) ? asked.theme : "auto",
      groups: [],
    });
    for (const { name, members, open } of list(asked.groups)) {
      group(list(members), { name: typeof name === "string" ? name : "", open: open === true });
    }
    choose(nodes.has(asked.pinned) ? asked.pinned : null);
    const zoom = list(asked.zoom);
    if (zoom.length === 3 && zoom.every(Number.isFinite) && zoom[2] > 0) setView(...zoom);
    else fit();
  } finally {
    applying = false;
  }
}

// A link names a node, as links of earlier pages do, or holds a state.
function fromHash(hash) {
  try {
    if (hash.startsWith(MARK)) return parsed(hash.slice(MARK.length));
    const id = decodeURIComponent(hash.slice(1));
    return nodeOf(id) ? { ...usual, pinned: id } : null;
  } catch {
    return null;
  }
}

function parsed(text) {
  const bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
  const found = JSON.parse(new TextDecoder().decode(bytes));
  return found && typeof found === "object" ? { ...usual, ...found } : null;
}

// Only what is not as it was when the page was opened first.
function hashOf(now) {
  const changed = Object.entries(now).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(usual[name]));
  if (!changed.length) return "";
  if (changed.length === 1 && changed[0][0] === "pinned" && now.pinned) return "#" + encodeURIComponent(now.pinned);
  const bytes = new TextEncoder().encode(JSON.stringify(Object.fromEntries(changed)));
  const text = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  return MARK + text.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function write() {
  const hash = hashOf(snapshot());
  if (hash === location.hash) return;
  try {
    history.replaceState(null, "", hash || location.pathname + location.search);
  } catch {
    // A page inside another, as of a notebook, has no address of its own.
  }
}

// A state's file that is dropped on the page opens there.
function takeDropped() {
  window.addEventListener("dragover", (event) => event.preventDefault());
  window.addEventListener("drop", async (event) => {
    event.preventDefault();
    const [file] = event.dataTransfer?.files || [];
    if (!file) return;
    try {
      const asked = JSON.parse(await file.text());
      if (asked?.format !== FORMAT) throw new TypeError("no state");
      apply({ ...usual, ...asked });
    } catch {
      window.alert(`${file.name} is not the state of a page.`);
    }
  });
}

function buttons() {
  const copy = html("button", { type: "button", id: "copy-link", title: "Copy a link that opens this view" }, "link");
  copy.addEventListener("click", async () => {
    write();
    const said = await navigator.clipboard?.writeText(location.href).then(
      () => "copied",
      () => "see the address bar",
    );
    copy.textContent = said || "see the address bar";
    setTimeout(() => copy.replaceChildren("link"), 1500);
  });
  const about = "Download what was done to this page, for `circuit render --state`";
  const save = html("button", { type: "button", id: "download-state", title: about }, "save state");
  save.addEventListener("click", download);
  get("tools").append(copy, save);
}

function download() {
  // Half of a character is nothing that a file can hold.
  const whole = (_, value) => (typeof value === "string" ? value.toWellFormed() : value);
  const text = JSON.stringify(snapshot(), whole, 1);
  const address = URL.createObjectURL(new Blob([text + "\n"], { type: "application/json" }));
  html("a", { href: address, download: `${circuit.graph.name}.state.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
