// Light and dark, and what is printed.
import { get } from "#dom";
import { current, set, subscribe } from "#store";

const THEMES = ["auto", "light", "dark"];
const SIGNS = { auto: "◐", light: "☀", dark: "☾" };

export function appearance() {
  get("theme").addEventListener("click", () => {
    set({ theme: THEMES[(THEMES.indexOf(current().theme) + 1) % THEMES.length] });
  });
  subscribe(
    ["theme"],
    ({ theme }) => {
      document.documentElement.dataset.theme = theme;
      get("theme").textContent = SIGNS[theme];
      get("theme").setAttribute("aria-label", `theme: ${theme}`);
    },
    true,
  );
  window.addEventListener("beforeprint", () => print(true));
  window.addEventListener("afterprint", () => print(false));
}

// On paper the whole drawing is seen, as large as on the screen in letters of its own size.
function print(printing) {
  const canvas = get("canvas");
  const { clientWidth: width, clientHeight: height } = canvas;
  if (printing) {
    canvas.setAttribute("viewBox", `0 0 ${width} ${height}`);
    get("drawing").style.aspectRatio = `${width} / ${height}`;
  } else {
    canvas.removeAttribute("viewBox");
    get("drawing").style.aspectRatio = "";
  }
  set({ printing });
}
