// Labels that the reader wrote: of a feature wherever it stands, or of a node that is no feature.
import { html } from "#dom";
import { current, set } from "#store";
import { visible } from "#text";
import { caption } from "#words";

const LONGEST = 10_000;

export const labelled = (node) => node.feature || node.id;
export const isEdited = (node) => current().labels.has(labelled(node));

// An empty label gives back the one that was there before.
export function rename(node, text) {
  const labels = new Map(current().labels);
  const written = text.trim().slice(0, LONGEST);
  if (written) labels.set(labelled(node), written);
  else labels.delete(labelled(node));
  set({ labels });
}

// The label of a node as a button that turns into a field: Enter saves, Escape leaves it.
export function editable(node) {
  const [label] = caption(node);
  const named = label && (node.details?.label || isEdited(node));
  return field({
    id: "label",
    text: named ? label : "",
    shown: named ? visible(label) : "add a label",
    about: "Edit this label (e)",
    save: (text) => rename(node, text),
  });
}

// Text that is edited in place; `save` gets what was written.
export function field({ id = null, text, shown, about, save }) {
  const place = html("span", { class: "editable" });
  const button = html("button", { type: "button", id, class: text ? "text" : "text grey", title: about }, shown);
  button.addEventListener("click", () => open(place, button, { text, about, save }));
  place.append(button);
  return place;
}

function open(place, button, { text, about, save }) {
  const input = html("input", { type: "text", "aria-label": about, maxlength: LONGEST, autocomplete: "off" });
  input.value = text;
  let done = false;
  const close = (saves) => {
    if (done) return;
    done = true;
    place.replaceChildren(button);
    button.focus();
    if (saves && input.value !== text) save(input.value);
  };
  input.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter") close(true);
    if (event.key === "Escape") close(false);
  });
  input.addEventListener("blur", () => close(true));
  place.replaceChildren(input);
  input.select();
  input.focus();
}
