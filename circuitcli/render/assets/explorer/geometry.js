// Where boxes and edges stand on the page.
import { circuit, layout } from "#data";

export const [cardWidth, cardHeight] = layout.card;
export const corner = (id) => layout.places[id];

const routes = new Map(circuit.edges.map((edge, index) => [edge, layout.routes[index]]));

// The same curves as render/routes.py looks at: straight up at each point, and straight through gaps between cards.
export function path(edge) {
  const points = routes.get(edge);
  const alone = points.length === 2;
  const parts = points.slice(1).map(([x, y], index) => {
    const [x0, y0] = points[index];
    const size = Math.abs(y0 - y) * 0.45;
    const bend = alone ? Math.max(30, size) : size;
    return `C${x0},${y0 - bend} ${x},${y + bend} ${x},${y}`;
  });
  return `M${points[0]}${parts.join("")}`;
}
