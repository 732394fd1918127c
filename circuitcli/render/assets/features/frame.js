// What stands above every page: where one is, and the way to the others.
import { get, html } from "#element";
import { visible } from "#text";
import { themeButton } from "#theme";

// parts: [text, address] or [text], from the outside in.
export function heading(parts, ...tools) {
  const path = parts.map(([text, address], number) => [
    number ? html("span", { class: "sep", "aria-hidden": "true" }, "/") : null,
    address ? html("a", { href: address }, visible(text)) : html("b", {}, visible(text)),
  ]);
  get("top").replaceChildren(
    html("nav", { "aria-label": "pages" }, path),
    html("div", { id: "tools" }, tools, themeButton()),
  );
}

// A message in place of what could not be shown.
export function problem(message, ...more) {
  get("main").replaceChildren(html("p", { id: "problem", role: "alert" }, visible(message)), ...more);
}

// Keys that no field is being typed into.
export function onKeys(keys) {
  document.addEventListener("keydown", (event) => {
    const isTyping = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName || "");
    if (event.ctrlKey || event.metaKey || event.altKey || (isTyping && event.key !== "Escape")) return;
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
}
