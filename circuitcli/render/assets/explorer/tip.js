// The small text beside the pointer.
import { get } from "#dom";

export function showTip(event, text) {
  const box = get("drawing").getBoundingClientRect();
  const tip = get("tip");
  tip.textContent = text;
  tip.hidden = false;
  const left = Math.min(event.clientX - box.left + 14, box.width - tip.offsetWidth - 8);
  const top = Math.min(event.clientY - box.top + 16, box.height - tip.offsetHeight - 8);
  tip.style.left = Math.max(0, left) + "px";
  tip.style.top = Math.max(0, top) + "px";
}

export function hideTip() {
  get("tip").hidden = true;
}
