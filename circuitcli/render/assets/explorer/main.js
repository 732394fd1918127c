// The page: each part is drawn once and then follows the state in store.js.
import { boxes } from "#boxes";
import { choose, lit } from "#choice";
import { get, svg } from "#dom";
import { lines, markers, numbers } from "#edges";
import { filter } from "#filter";
import { grid } from "#grid";
import { heading } from "#heading";
import { keyboard } from "#keyboard";
import { legend } from "#legend";
import { panel } from "#panel";
import { search } from "#search";
import { subscribe } from "#store";
import { fit, followPointer, hasMoved } from "#view";

const canvas = get("canvas");
const world = svg("g", {}, grid(), lines(), boxes(), numbers());
canvas.append(markers(), world);
canvas.addEventListener("click", (event) => {
  if (!hasMoved() && !event.target.closest(".node, .reach")) choose(null);
});
subscribe(["chosen", "focus", "shown"], () => canvas.classList.toggle("dim", lit() !== null));
heading();
legend();
filter();
panel();
search();
keyboard();
followPointer(world);
choose(location.hash ? decodeURIComponent(location.hash.slice(1)) : null);
fit();
document.documentElement.dataset.ready = "1";
