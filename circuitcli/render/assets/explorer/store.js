// What the reader has done to the page. Modules do not call one another: they set state here and follow what they show.
const state = {
  chosen: null, // the id of the pinned node
  focus: null, // what the pointer or the keyboard is at: { nodes: Set of ids, edges: [edge], at: id or null }
  shown: [], // the edges that are drawn, the weakest first
  found: new Set(), // ids of nodes that a search found
  labels: new Map(), // labels by node id that the reader wrote
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
