import { describe, expect, it } from "vitest"
import { open, fromBase64, untile, type Manifest } from "../src/format"
import raw from "./fixture.json?raw"

const fixture = JSON.parse(raw) as { manifest: unknown; blocks: Record<string, string>; expected: unknown[] }
const bytes = (text: string) => fromBase64(text).buffer as ArrayBuffer
const manifest = fixture.manifest as unknown as Manifest
const source = { manifest, read: (name: string) => bytes(fixture.blocks[name]!) }
const value = (v: number | string) =>
  typeof v == "number" ? v : Number(v == "inf" ? Infinity : v == "-inf" ? -Infinity : NaN)

describe("decoding", async () => {
  const readings = await open(source)

  it("gives every number that the writer had", async () => {
    for (const [n, R] of readings.entries()) {
      const want = fixture.expected[n] as any
      for (let t = 0; t < R.T; t++) await R.load(t)
      for (let l = 0; l < R.L; l++)
        for (let t = 0; t < R.T; t++) {
          for (let k = 0; k < R.K; k++) {
            expect(R.top(l, t, k)).toBe(want.top_ids[l][t][k])
            expect(R.lp(l, t, k)).toBe(value(want.top_logprobs[l][t][k]))
            expect(R.topRank(l, t, k)).toBe(want.top_ranks[l][t][k])
          }
          for (const name of ["entropy", "kl", "next_logprobs"])
            expect(R.num(name, l, t)).toBe(value(want[name][l][t]))
          expect(R.rank("next_ranks", l, t)).toBe(want.next_ranks[l][t] || NaN)
          for (let m = 0; m < R.M; m++) {
            expect(R.num("track_logprobs", l, t, m)).toBe(value(want.track_logprobs[l][t][m]))
            expect(R.rank("track_ranks", l, t, m)).toBe(want.track_ranks[l][t][m])
          }
        }
      want.pieces.forEach((p: string | null, i: number) => p != null && expect(R.head.pieces[i]).toBe(p))
    }
  })

  it("inflates a tile when it is asked for, once", async () => {
    let reads = 0
    const [R] = await open({ manifest, read: name => (reads++, source.read(name)) })
    reads = 0
    expect(R!.ready(0)).toBe(false)
    expect(R!.lp(0, 0)).toBeNaN()
    expect(R!.top(0, 0)).toBe(-1)
    await Promise.all([R!.load(0), R!.load(3), R!.load(1)])
    expect([reads, R!.ready(3), R!.ready(4)]).toEqual([1, true, false])
  })

  it("knows a token exactly where it is tracked, next or among the top, else as a bound", async () => {
    const [R] = readings,
      want = fixture.expected[0] as any
    await R!.load(0)
    const m = R!.head.track[1]!
    expect(R!.token(1, 2, m).rank).toBe(want.track_ranks[1][2][1])
    const top = R!.top(1, 2, 2)
    expect(R!.token(1, 2, top).rank).toBe(want.top_ranks[1][2][2])
    const none = [...Array(500).keys()].find(
      id => R!.head.next[2] != id && !R!.head.track.includes(id) && !want.top_ids[1][2].includes(id),
    )!
    expect(R!.token(1, 2, none)).toEqual({ lp: NaN, rank: Infinity })
  })

  it("refuses foreign, older and newer data, and a tile of another length, in words", async () => {
    await expect(open({ ...source, manifest: { ...manifest, version: 1 } })).rejects.toThrow(
      "data are logitlens-page 1",
    )
    await expect(open({ ...source, manifest: {} as Manifest })).rejects.toThrow("undefined")
    expect(() => untile(new Uint8Array(7), [["entropy", "f16", 1]], 2, 1, 1, 0)).toThrow("holds 7 bytes")
  })

  it("tells when a tile cannot be read", async () => {
    const [R] = await open({
      manifest,
      read: name => (name.endsWith("head") ? source.read(name) : Promise.reject(Error("gone"))),
    })
    let said: string | undefined
    R!.changed = problem => (said = problem)
    await R!.load(5)
    expect(said).toContain("Positions from 4 could not be read: gone")
  })
})
