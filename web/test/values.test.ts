import { describe, expect, it } from "vitest"
import { contrast, luminance, scale } from "../src/colour"
import type { Reading, Statistic } from "../src/format"
import { clip, fit, prob, repair, visible } from "../src/text"
import { candidates, follow, pinModes, settled, statisticMode, ticks } from "../src/values"

/** A reading of two slots: rows of [first id, second id] with probabilities .6 and .2. */
function fake(rows: [number, number][], range = {}): Reading {
  const logprob = (k: number) => Math.log(k ? 0.2 : 0.6)
  const topId = (l: number, _t: number, k = 0) => rows[l]![k]
  return {
    L: rows.length,
    K: 2,
    candidateIds: [[]],
    manifest: { range },
    topId,
    finalId: () => topId(rows.length - 1, 0),
    topLogprob: (_l: number, _t: number, k = 0) => logprob(k),
    value: (_name: string, l: number) => l,
    token(l: number, _t: number, id: number) {
      const k = rows[l]!.indexOf(id)
      return k < 0 ? { logprob: NaN, rank: Infinity } : { logprob: logprob(k), rank: k + 1 }
    },
  } as unknown as Reading
}

const statistic = (part: Partial<Statistic>): Statistic => ({
  name: "x",
  field: "x",
  label: "made up",
  unit: "",
  scale: "linear",
  bright: "high",
  per: "cell",
  ...part,
})

describe("reducers", () => {
  const reading = fake([
    [5, 9],
    [9, 5],
    [7, 9],
    [9, 7],
    [9, 1],
  ])

  it("candidates are those that were top at any layer, the final one first", () => {
    expect(candidates(reading, 0)).toEqual([9, 5, 7])
    expect(candidates(reading, 0, 2)).toHaveLength(2)
    expect(candidates({ ...reading, candidateIds: [[7, 3, -1]] } as Reading, 0)).toEqual([7, 3])
  })
  it("settled is the first layer from which the final token stays top", () => {
    expect(settled(reading, 0)).toBe(3)
    const always: [number, number] = [1, 2]
    expect(settled(fake([always, always]), 0)).toBe(0)
  })
  it("a group adds probabilities and takes the best rank", () => {
    const both = follow(reading, 0, 0, [9, 5])
    expect(Math.exp(both.logprob)).toBeCloseTo(0.8)
    expect(both.rank).toBe(1)
    expect(follow(reading, 0, 0, [1])).toEqual({ logprob: NaN, rank: Infinity })
  })
})

describe("colour modes follow the statistics of the manifest", () => {
  const reading = fake(
    [
      [5, 6],
      [9, 1],
    ],
    { x: [2, 8], y: [-3, -1], z: [-1, 4], next_ranks: [1, 1000] },
  )

  it("a rank beyond the top k is a bound, not a number", () => {
    const mode = statisticMode(statistic({ field: "final", scale: "rank", bright: "low" }))
    expect(mode.value(reading, 0, 0)).toBe(Infinity)
    expect(mode.value(reading, 1, 0)).toBe(1)
    expect(mode.format(Infinity)).toBe("beyond the top k")
    expect(mode.format(1234)).toBe("#1,234")
    expect(mode.domain(reading)).toEqual([3, 0])
  })
  it("agreement is derived from the top k", () => {
    const mode = statisticMode(statistic({ field: "agree", scale: "yes or no" }))
    expect([0, 1].map(l => mode.format(mode.value(reading, l, 0)))).toEqual(["no", "yes"])
  })
  it("a linear scale has 0 at an end or inside, and its bright end where the record says", () => {
    const domains = ["x", "y", "z"].map(field => statisticMode(statistic({ field })).domain(reading))
    expect(domains).toEqual([
      [0, 8],
      [-3, 0],
      [-1, 4],
    ])
    expect(statisticMode(statistic({ bright: "low" })).domain(reading)).toEqual([8, 0])
  })
  it("a logarithmic scale begins at 0.01 and says that there is more", () => {
    const kl = statisticMode(statistic({ field: "x", scale: "log", bright: "low" }))
    const [dark, bright] = kl.domain(fake([[1, 2]], { x: [0, 10] }))
    expect([dark, bright]).toEqual([1, -2])
    expect(ticks(kl, dark, bright).map(([text]) => text)).toEqual(["≥10", "0.32", "≤0.01"])
  })
  it("a statistic that nobody has heard of has its label and its unit", () => {
    const mode = statisticMode(statistic({ label: "norm of the stream", unit: "units" }))
    expect(mode.label).toBe("Norm of the stream")
    expect([mode.format(1), mode.short(1)]).toEqual(["1.00 units", "1.00"])
    expect(ticks(mode, 0, 8).map(([text]) => text)).toEqual(["0", "4", "≥8"])
    expect(ticks(statisticMode(statistic({ scale: "probability" })), 0, 1).map(([text]) => text)).toEqual([
      "0%",
      "50%",
      "100%",
    ])
  })
  it("of a pin, what is beyond the top k is at the dark end", () => {
    const modes = pinModes("“a”", (R, l, t) => R.token(l, t, 9))
    expect(Object.keys(modes)).toEqual(["pin", "pinrank"])
    expect(modes.pin!.label).toBe("Log-probability of “a”")
    expect([modes.pin!.value(reading, 0, 0), modes.pinrank!.value(reading, 0, 0)]).toEqual([
      -Infinity,
      Infinity,
    ])
    expect(modes.pin!.value(reading, 1, 0)).toBeCloseTo(Math.log(0.6))
  })
})

describe("tokens", () => {
  it("shows what cannot be seen", () => {
    expect(visible(" a\n")).toBe("␣a⏎")
    expect(visible("")).toBe("⟨⟩")
    expect(visible("\u0301")).toBe("◌\u0301")
    expect(visible("\u202ex\u200b")).toBe("\\u202ex\\u200b")
    expect(visible("\x1b[1m\u2028\u3000")).toBe("␛[1m\\u2028\\u3000")
    expect(visible("👩‍👩‍👧")).toBe("👩‍👩‍👧")
    expect(visible("\ud83d x 😀")).toBe("\\ud83d x 😀")
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
  it("writes a probability with the figures it has, and 100 % only of what rounds to it", () => {
    expect([0.9994, 0.9996].map(p => prob(Math.log(p)))).toEqual(["99.9%", "100%"])
    expect([0, -1, -5, -9, -14, Math.log(9.97e-9), -Infinity, NaN].map(prob)).toEqual([
      "100%",
      "36.8%",
      "0.674%",
      "0.012%",
      "8.3·10⁻⁷",
      "1.0·10⁻⁸",
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
