// Light, dark, or as the system has it; kept where the browser lets pages keep something.
import { button } from "#element";

const NAMES = ["auto", "light", "dark"];
const KEY = "circuit-theme";

function kept() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}

function keep(name) {
  try {
    localStorage.setItem(KEY, name);
  } catch {
    // A page from a folder may have no place to keep anything.
  }
}

export function themeButton() {
  let at = Math.max(0, NAMES.indexOf(kept()));
  const made = button("", "Light, dark, or as the system has it", () => show((at + 1) % NAMES.length), { id: "theme" });
  function show(next) {
    at = next;
    if (at) document.documentElement.dataset.theme = NAMES[at];
    else delete document.documentElement.dataset.theme;
    made.textContent = `theme: ${NAMES[at]}`;
    keep(NAMES[at]);
  }
  show(at);
  return made;
}
