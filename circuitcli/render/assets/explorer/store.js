// What the reader has done to the page. Modules do not call one another: they set state here and follow what they show.
const state = {
  // What the reader chose.
  chosen: null, // the id of the pinned node
  focus: null, // what the pointer or the keyboard is at: { nodes: Set of ids, edges: [edge], at: id or null }
  found: new Set(), // ids of nodes that a search found
  labels: new Map(), // labels that the reader wrote, by feature, or by node id of what is no feature
  selected: new Set(), // ids of nodes that the reader gathers
  groups: [], // nodes that stand for one: { id, name, members: ids, open }
  hidden: new Set(), // kinds of nodes that are not drawn
  by: "effect", // what nodes and edges are ranked by: "effect" or "influence"
  nodeCount: Infinity, // so many of the first nodes,
  edgeCount: 0, // and of the first edges, are drawn
  inOneColumn: false, // whether positions are not told apart
  merge: null, // what makes nodes one: ({ nodes, edges }) => ({ nodes, edges })
  theme: "auto", // "auto", "light" or "dark"
  // What follows from it.
  boxes: [], // the nodes that are drawn,
  shown: [], // the edges that are drawn, the weakest first,
  placed: null, // and where: { places, rows, columns, width, height, bottom, left }
  view: { x: 0, y: 0, zoom: 1 }, // what part of the drawing is seen
  size: { width: 0, height: 0 }, // of what the drawing is seen in, in pixels
  printing: false,
};
const followers = [];
const waiting = [];
let busy = false;

export const current = () => state;

// Calls `follower(state)` after each change of one of the keys, and once now with `atOnce`.
export function subscribe(keys, follower, atOnce = false) {
  followers.push([keys, follower]);
  if (atOnce) follower(state);
}

// Changes state and tells who follows; a change made by a follower waits for its turn.
export function set(changes) {
  waiting.push(changes);
  if (busy) return;
  busy = true;
  try {
    while (waiting.length) tell(waiting.shift());
  } finally {
    busy = false;
    waiting.length = 0;
  }
}

function tell(changes) {
  const changed = Object.keys(changes).filter((key) => state[key] !== changes[key]);
  Object.assign(state, changes);
  for (const [keys, follower] of followers) if (keys.some((key) => changed.includes(key))) follower(state);
}
