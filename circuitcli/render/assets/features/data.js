// What a page carries, and what it loads: files beside it hand their value over, for pages from a folder cannot fetch.
import { get } from "#element";

export const carried = JSON.parse(get("data").textContent);

const waiting = new Map();
const loaded = new Map();

window.circuitData = (key, value) => {
  waiting.get(key)?.(value);
  waiting.delete(key);
};

// The value of a file, by its name below data/. Rejects where there is no such file.
export function load(key) {
  if (!loaded.has(key)) loaded.set(key, begin(key));
  return loaded.get(key);
}

function begin(key) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    waiting.set(key, resolve);
    script.src = "data/" + key.split("/").map(encodeURIComponent).join("/") + ".js";
    script.onerror = () => reject(new Error(`there is no file ${script.getAttribute("src")}`));
    script.onload = () => {
      if (waiting.has(key)) reject(new Error(`${script.getAttribute("src")} does not hold ${key}`));
      script.remove();
    };
    document.head.append(script);
  });
}
