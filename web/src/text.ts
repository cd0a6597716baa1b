/* Tokens as a person can read them: whitespace and control characters get glyphs, combining marks a
 * base, byte fragments their hex; truncation never cuts a grapheme. */

const GLYPHS: Record<string, string> = { " ": "·", "\n": "↵", "\t": "⇥", "\xa0": "⍽" }
const HIDDEN =
  /[\s\x00-\x1f\x7f-\x9f\xad\u200b\u200c\u200e\u200f\u2028-\u202f\u2060-\u206f\ufeff\p{Cs}]|^\u200d/gu

/** A token with everything invisible made visible; "" (an empty piece) is shown as ∅. */
export function visible(piece: string): string {
  const text = piece.replace(
    HIDDEN,
    c =>
      GLYPHS[c] ??
      (c < " "
        ? String.fromCharCode(0x2400 + c.charCodeAt(0))
        : `⟨${c.charCodeAt(0).toString(16).toUpperCase()}⟩`),
  )
  return text ? (/^\p{M}/u.test(text) ? "◌" : "") + text : "∅"
}

/** The first n graphemes of a text (n + 1 where there are more); looks at a bounded part of it. */
function graphemes(text: string, n: number): string[] {
  const part = text.slice(0, n * 12),
    all = Intl.Segmenter ? Array.from(new Intl.Segmenter().segment(part), s => s.segment) : [...part]
  return all.slice(0, n + 1)
}

/** At most n graphemes, with … where something was left out. */
export function clip(text: string, n: number): string {
  if (text.length <= n) return text
  const g = graphemes(text, n)
  return g.length > n || g.join("").length < text.length ? g.slice(0, n - 1).join("") + "…" : text
}

/** Truncate to a width. */
export function fit(text: string, width: number, measure: (s: string) => number): string {
  if (text.length < 60 && measure(text) <= width) return text
  const g = graphemes(text, 60)
  let n = Math.min(g.length, 60)
  while (n && measure(g.slice(0, n).join("") + "…") > width) n--
  return n ? g.slice(0, n).join("") + "…" : ""
}

export const rtl = (s: string) => /[\u0590-\u08ff\ufb1d-\ufefc]/.test(s)

/** How many bytes the UTF-8 sequence has that begins with this byte (0: a continuation byte). */
const span = (b: number) => (b < 0x80 ? 1 : b >= 0xf0 ? 4 : b >= 0xe0 ? 3 : b >= 0xc0 ? 2 : 0)

/** The glyph that a fragment completes after the bytes before it, or "" when it completes none. */
export function repair(before: number[], fragment: number[]): string {
  let start = before.length - 1
  while (start > 0 && !span(before[start]!)) start--
  const all = before.slice(start).concat(fragment),
    need = span(all[0]!)
  if (start < 0 || before.length - start >= need || all.length < need) return ""
  return new TextDecoder().decode(new Uint8Array(all.slice(0, need))).replace(/\ufffd/g, "")
}

export const hex = (bytes: number[]) =>
  bytes.map(b => b.toString(16).toUpperCase().padStart(2, "0")).join(" ")

export const sup = (d: number) => String(d).replace(/[-\d]/g, c => (c == "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[+c]!))

/** Probability from a natural logarithm, with as many figures as half precision carries. */
export function prob(lp: number): string {
  const p = Math.exp(Math.min(lp, 0)),
    q = 100 * p,
    e = Math.floor(Math.log10(p))
  return Number.isNaN(p)
    ? "–"
    : p && p < 1e-5
      ? (p / 10 ** e).toFixed(1) + "·10" + sup(e)
      : (q >= 99.95 ? "100" : q >= 0.1 ? q.toPrecision(3) : +q.toPrecision(2)) + "%"
}

export const num = (v: number, digits = 3) =>
  v == Infinity
    ? "∞"
    : !Number.isFinite(v)
      ? "–"
      : Math.abs(v) < 1e-4
        ? "0"
        : v.toPrecision(digits).replace("-", "−")
export const count = (v: number) => (Number.isFinite(v) ? v.toLocaleString("en-US") : "–")
