// Groups: nodes that are drawn as one box. Made by hand from what is selected, or taken from those that are proposed.
import { choose } from "#choice";
import { circuit, nodes } from "#data";
import { current, set, subscribe } from "#store";
import { known } from "#text";
import { caption } from "#words";

let made = 0;
const prefix = "group/";

export const isGroup = (id) => id.startsWith(prefix);
export const groupOf = (id) => current().groups.find((group) => group.id === id) || null;
export const groupWith = (id) => current().groups.find((group) => group.members.includes(id)) || null;

export function groups() {
  subscribe(["groups"], ({ groups: all }) => {
    const closed = all.filter((group) => !group.open);
    set({ merge: closed.length ? (kept) => merged(kept, closed) : null });
  });
}

// A group of nodes that are in no other; its name, or else a label that most of them have in common.
export function group(members, { name = "", open = false } = {}) {
  const taken = new Set(current().groups.flatMap((one) => one.members));
  const free = [...new Set(members)].filter((id) => nodes.has(id) && !taken.has(id));
  if (free.length < 2) return null;
  const one = { id: prefix + ++made, name: name || nameFor(free), members: free, open };
  set({ groups: [...current().groups, one], selected: new Set() });
  return one;
}

export function change(id, changes) {
  set({ groups: current().groups.map((one) => (one.id === id ? { ...one, ...changes } : one)) });
}

export function dissolve(id) {
  if (current().chosen === id) choose(null);
  set({ groups: current().groups.filter((one) => one.id !== id) });
}

export function select(id, on = !current().selected.has(id)) {
  const selected = new Set(current().selected);
  if (on && nodes.has(id)) selected.add(id);
  else selected.delete(id);
  set({ selected });
}

export const selectNone = () => set({ selected: new Set() });

// Proposed groups of which no member is in a group yet.
export function proposed() {
  const taken = new Set(current().groups.flatMap((one) => one.members));
  return circuit.groups.filter((one) => !one.members.some((id) => taken.has(id)));
}

// A name for nodes without one: the label of the strongest.
export function nameFor(members) {
  const strongest = members.map((id) => nodes.get(id)).reduce((a, b) => (size(b) > size(a) ? b : a));
  const [label] = caption(strongest);
  return label ? `${label} +${members.length - 1}` : `${strongest.id} +${members.length - 1}`;
}

const size = (node) => Math.abs(node.effect ?? node.influence ?? 0);

// What is drawn when each of these groups is one box.
function merged({ nodes: all, edges }, closed) {
  const here = new Map(all.map((node) => [node.id, node]));
  const boxOf = new Map();
  const boxes = [];
  for (const one of closed) {
    const members = one.members.filter((id) => here.has(id)).map((id) => here.get(id));
    if (members.length < 2) continue;
    const box = boxFor(one, members);
    boxes.push(box);
    for (const node of members) boxOf.set(node.id, box);
  }
  return { nodes: [...all.filter((node) => !boxOf.has(node.id)), ...boxes], edges: joined(edges, boxOf) };
}

// A group as a node: where its strongest member stands, with the sum of the effects.
function boxFor(one, members) {
  const strongest = members.reduce((a, b) => (size(b) > size(a) ? b : a));
  const effects = members.filter((node) => known(node.effect));
  const units = new Set(effects.map((node) => node.unit));
  return {
    id: one.id,
    kind: "group",
    name: one.name,
    members: members.map((node) => node.id),
    hook: strongest.hook,
    position: strongest.position,
    token: strongest.token,
    feature: null,
    details: null,
    effect: units.size === 1 ? effects.reduce((sum, node) => sum + node.effect, 0) : null,
    unit: units.size === 1 ? effects[0].unit : null,
  };
}

// Edges between what is drawn; those that are the same now are added up, of each unit by itself.
function joined(edges, boxOf) {
  const sums = new Map();
  const kept = [];
  for (const edge of edges) {
    const source = boxOf.get(edge.source)?.id ?? edge.source;
    const target = boxOf.get(edge.target)?.id ?? edge.target;
    if (source === target) continue;
    if (source === edge.source && target === edge.target) {
      kept.push(edge);
      continue;
    }
    const key = JSON.stringify([source, target, edge.unit]);
    if (!sums.has(key)) sums.set(key, { source, target, unit: edge.unit, weight: 0, parts: [] });
    const sum = sums.get(key);
    sum.weight += edge.weight;
    sum.parts.push(edge);
  }
  const largest = new Map(circuit.scales.map((scale) => [scale.unit, scale.largest]));
  return [...kept, ...[...sums.values()].map((sum) => ({ ...sum, ...ink(sum.weight, largest.get(sum.unit)) }))];
}

// As wide as any edge of this weight.
function ink(weight, largest) {
  const strength = largest > 0 ? Math.min(Math.abs(weight) / largest, 1) : 0;
  const share = Math.sqrt(strength);
  return { strength, opacity: 0.12 + 0.88 * share, width: 0.6 + 3.4 * share };
}
