import { describe, expect, it } from "vitest"
import { contrast, luminance, scale } from "../src/colour"
import type { Reading } from "../src/format"
import { clip, fit, prob, repair, visible } from "../src/text"
import { MODES, candidates, follow, settled } from "../src/values"

/** A reading of two slots: rows of [first id, second id] with probabilities .6 and .2. */
function fake(rows: [number, number][]): Reading {
  const R = {
    L: rows.length,
    K: 2,
    man: { range: {} },
    head: { track: [], next: [] },
    ready: () => true,
    top: (l: number, _t: number, k = 0) => rows[l]![k],
    lp: (_l: number, _t: number, k = 0) => Math.log(k ? 0.2 : 0.6),
  }
  return Object.assign(R, {
    token: (l: number, _t: number, id: number) => {
      const k = rows[l]!.indexOf(id)
      return k < 0 ? { lp: NaN, rank: Infinity } : { lp: Math.log(k ? 0.2 : 0.6), rank: k + 1 }
    },
  }) as unknown as Reading
}

describe("reducers", () => {
  const R = fake([
    [5, 9],
    [9, 5],
    [7, 9],
    [9, 7],
    [9, 1],
  ])

  it("candidates are those that were top at any depth, the final one first", () => {
    expect(candidates(R, 0)).toEqual([9, 5, 7])
    expect(candidates(R, 0, 2)).toHaveLength(2)
  })
  it("settled is the first depth from which the final token stays top", () => {
    expect(settled(R, 0)).toBe(3)
    expect(
      settled(
        fake([
          [1, 2],
          [1, 2],
        ]),
        0,
      ),
    ).toBe(0)
  })
  it("a group adds probabilities and takes the best rank", () => {
    const v = follow(R, 0, 0, [9, 5])
    expect(Math.exp(v.lp)).toBeCloseTo(0.8)
    expect(v.rank).toBe(1)
    expect(follow(R, 0, 0, [1])).toEqual({ lp: NaN, rank: Infinity })
  })
  it("a rank beyond the top k is a bound, not a number", () => {
    expect(
      MODES.final!.val(
        fake([
          [5, 6],
          [9, 1],
        ]),
        0,
        0,
      ),
    ).toBe(Infinity)
    expect(MODES.final!.fmt(Infinity)).toBe("beyond the top k")
    expect(MODES.agree!.val(R, 1, 0)).toBe(1)
  })
})

describe("tokens", () => {
  it("shows what cannot be seen", () => {
    expect(visible(" a\n")).toBe("·a↵")
    expect(visible("")).toBe("∅")
    expect(visible("\u0301")).toBe("◌\u0301")
    expect(visible("\u202ex\u200b")).toBe("⟨202E⟩x⟨200B⟩")
    expect(visible("\x1b[1m\u2028\u3000")).toBe("␛[1m⟨2028⟩⟨3000⟩")
    expect(visible("👩‍👩‍👧")).toBe("👩‍👩‍👧")
    expect(visible("\ud83d x 😀")).toBe("⟨D83D⟩·x·😀")
  })
  it("never cuts a grapheme", () => {
    expect(clip("👩‍👩‍👧‍👦👩‍👩‍👧‍👦👩‍👩‍👧‍👦", 2)).toBe("👩‍👩‍👧‍👦…")
    expect(clip("e\u0301e\u0301e\u0301", 3)).toBe("e\u0301e\u0301e\u0301")
    expect(clip("x".repeat(10_000), 5)).toBe("xxxx…")
    expect(fit("👩‍👩‍👧‍👦 family", 30, s => 10 * [...new Intl.Segmenter().segment(s)].length)).toBe("👩‍👩‍👧‍👦 …")
    expect(fit("ab", 5, s => 10 * s.length)).toBe("")
  })
  it("repairs a character that a fragment completes, and only then", () => {
    const smile = [0xf0, 0x9f, 0x98, 0x80]
    expect(repair(smile.slice(0, 3), [0x80])).toBe("😀")
    expect(repair(smile.slice(0, 2), [0x98])).toBe("")
    expect(repair([0x41], [0x80])).toBe("")
    expect(repair([], [0x80])).toBe("")
    expect(repair([0xe6, 0x97], [0xa5])).toBe("日")
  })
  it("writes a probability with the figures it has", () => {
    expect([0, -1, -5, -9, -14, -Infinity, NaN].map(prob)).toEqual([
      "100%",
      "36.8%",
      "0.674%",
      "0.012%",
      "8.3·10⁻⁷",
      "0%",
      "–",
    ])
  })
})

describe("colour", () => {
  it("has ink of at least 4.5 : 1 on every colour of every scale", () => {
    for (const name of ["cividis", "viridis", "light", "dark"]) {
      const s = scale(name)
      s.css.forEach((c, i) => {
        const [r, g, b] = c.match(/\d+/g)!.map(Number) as [number, number, number]
        expect(contrast(luminance(r, g, b), s.ink[i] == "#000" ? 0 : 1)).toBeGreaterThanOrEqual(4.5)
        expect(s.rgba[i]).toBe(((255 << 24) | (b << 16) | (g << 8) | r) >>> 0)
      })
    }
  })
  it("cividis rises in lightness all the way", () => {
    const l = scale("cividis").css.map(c =>
      luminance(...(c.match(/\d+/g)!.map(Number) as [number, number, number])),
    )
    expect(l.every((v, i) => !i || v >= l[i - 1]! - 0.002)).toBe(true)
  })
})
