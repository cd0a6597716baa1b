/* Tokens as a person can read them: whitespace and control characters get glyphs, combining marks a
 * base, byte fragments their hex; truncation never cuts a grapheme. */

const GLYPHS: Record<string, string> = { " ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥", "\xa0": "⍽", "\x7f": "␡" }
/** Spaces at either end, beside another one, or beside a line end. */
const SPACES = /^ +| +$| {2,}|(?<=[\n\r\t]) +| +(?=[\n\r\t])/g
const HIDDEN =
  /[^\S ]|[\x00-\x1f\x7f-\x9f\xad\u200b\u200c\u200e\u200f\u2028-\u202f\u2060-\u206f\ufeff\p{Cs}]|^\u200d/gu

function glyph(hidden: string): string {
  const code = hidden.charCodeAt(0)
  // control characters have pictures of their own in Unicode
  if (GLYPHS[hidden] || code >= 32) return GLYPHS[hidden] ?? "\\u" + code.toString(16).padStart(4, "0")
  return String.fromCharCode(0x2400 + code)
}

/** A token with everything invisible made visible, as the terminal and the figures do it (see
 * src/logitlens/view/text.py); an empty piece is shown as ⟨⟩. */
export function visible(piece: string): string {
  const text = piece.replace(SPACES, run => "␣".repeat(run.length)).replace(HIDDEN, glyph)
  if (!text) return "⟨⟩"
  return /^\p{M}/u.test(text) ? "◌" + text : text
}

/** The first n graphemes of a text (n + 1 where there are more); looks at a bounded part of it. */
function graphemes(text: string, n: number): string[] {
  const part = text.slice(0, n * 12)
  const all = Intl.Segmenter ? Array.from(new Intl.Segmenter().segment(part), s => s.segment) : [...part]
  return all.slice(0, n + 1)
}

/** At most n graphemes, with … where something was left out. */
export function clip(text: string, n: number): string {
  if (text.length <= n) return text
  const parts = graphemes(text, n)
  const whole = parts.length <= n && parts.join("").length == text.length
  return whole ? text : parts.slice(0, n - 1).join("") + "…"
}

/** A text cut to a width. */
export function fit(text: string, width: number, measure: (s: string) => number): string {
  if (text.length < 60 && measure(text) <= width) return text
  const parts = graphemes(text, 60)
  let n = Math.min(parts.length, 60)
  while (n && measure(parts.slice(0, n).join("") + "…") > width) n--
  return n ? parts.slice(0, n).join("") + "…" : ""
}

export const isRightToLeft = (text: string) => /[\u0590-\u08ff\ufb1d-\ufefc]/.test(text)

/** How many bytes the UTF-8 sequence has that begins with this byte (0: a continuation byte). */
const sequenceLength = (byte: number) =>
  byte < 0x80 ? 1 : byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 0

/** The glyph that a fragment completes after the bytes before it, or "" when it completes none. */
export function repair(before: number[], fragment: number[]): string {
  let start = before.length - 1
  while (start > 0 && !sequenceLength(before[start]!)) start--
  const all = before.slice(start).concat(fragment)
  const length = sequenceLength(all[0]!)
  if (start < 0 || before.length - start >= length || all.length < length) return ""
  return new TextDecoder().decode(new Uint8Array(all.slice(0, length))).replace(/\ufffd/g, "")
}

export const hex = (bytes: number[]) =>
  bytes.map(byte => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ")

export const superscript = (n: number) =>
  String(n).replace(/[-\d]/g, c => (c == "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[+c]!))

/** Probability from a natural logarithm, with as many figures as half precision carries. */
export function prob(logprob: number): string {
  const p = Math.exp(Math.min(logprob, 0))
  if (Number.isNaN(p)) return "–"
  if (p && p < 1e-5) {
    const [digits, exponent] = p.toExponential(1).split("e")
    return `${digits}·10${superscript(+exponent!)}`
  }
  const percent = 100 * p
  // 100 % is said only of what rounds to it
  if (percent >= 99.95) return "100%"
  return (percent >= 0.1 ? percent.toPrecision(3) : +percent.toPrecision(2)) + "%"
}

export function number(value: number, digits = 3): string {
  if (value == Infinity) return "∞"
  if (!Number.isFinite(value)) return "–"
  return Math.abs(value) < 1e-4 ? "0" : value.toPrecision(digits).replace("-", "−")
}

/** A difference: with its sign, and so many places. */
export function signed(value: number, places: number): string {
  const text = Math.abs(value).toLocaleString("en-US", { maximumFractionDigits: places })
  return +text.replaceAll(",", "") ? (value < 0 ? "−" : "+") + text : "0"
}

export const count = (value: number) => (Number.isFinite(value) ? value.toLocaleString("en-US") : "–")

/** The name of a reading beside others. */
export const letter = (r: number) => "ABCDEFGH"[r] ?? String(r)
