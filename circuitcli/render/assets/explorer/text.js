// Numbers and text from outside as people read them; the same rules as render/text.py.
const SIGNS = { "\n": "↵", "\r": "␍", "\t": "⇥", "\u00a0": "⍽", "\u007f": "␡" };
const HIDDEN = /[\p{Cc}\p{Cs}\u00a0\u061c\u200b\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069\ufeff]/gu;
const WIDE =
  /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60]|\p{Extended_Pictographic}/u;

// Each of these is one column wide, as nearly all are.
const PLAIN = /^[ -~]*$/;

export const known = (value) => value !== null && value !== undefined;

function signOf(c) {
  if (SIGNS[c]) return SIGNS[c];
  const code = c.charCodeAt(0);
  return c < " " ? String.fromCharCode(0x2400 + code) : "\\u" + code.toString(16).padStart(4, "0");
}

export const visible = (text) => text.replace(HIDDEN, signOf);

export function shortened(text, room) {
  if (PLAIN.test(text)) return text.length > room ? text.slice(0, room - 1) + "…" : text;
  const kept = [];
  let used = 0;
  for (const c of visible(text)) {
    used += WIDE.test(c) ? 2 : 1;
    if (used > room) return kept.slice(0, -1).join("") + "…";
    kept.push(c);
  }
  return kept.join("");
}

// Lines of whole words as far as they fit, a space at the beginning of a quotation among them; what is too much for the
// last line is cut.
export function wrapped(text, room, lines) {
  const words = visible(text).split(/(?<! ") /);
  const found = [];
  while (words.length && found.length < lines - 1) {
    let line = words.shift();
    while (words.length && columns(`${line} ${words[0]}`) <= room) line += " " + words.shift();
    found.push(shortened(line, room));
  }
  if (words.length) found.push(shortened(words.join(" "), room));
  return found;
}

const columns = (text) => Array.from(text).reduce((sum, c) => sum + (WIDE.test(c) ? 2 : 1), 0);

export function number(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(3)));
}

export const signed = (value, unit) =>
  known(value) ? (value < 0 ? "" : "+") + number(value) + (unit ? " " + unit : "") : "unknown";
export const sign = (value) => (value < 0 ? "negative" : "positive");
export const percent = (share) => (100 * share).toFixed(1) + " %";
export const inPrompts = (share) => (known(share) ? `, in ${Math.round(100 * share)} % of prompts` : "");

export function measured(value, error, unit) {
  if (!known(error)) return signed(value, unit);
  return `${signed(value)} ± ${Number(error.toPrecision(2))}${unit ? " " + unit : ""}`;
}
