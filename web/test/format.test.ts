import { describe, expect, it } from "vitest"
import { range } from "../src/dom"
import { fromBase64, open, unpackTile, type Manifest, type Reading } from "../src/format"
import raw from "./fixture.json?raw"

const fixture = JSON.parse(raw) as { manifest: unknown; blocks: Record<string, string>; expected: unknown[] }
const bytes = (text: string) => fromBase64(text).buffer as ArrayBuffer
const manifest = fixture.manifest as unknown as Manifest
const source = { manifest, read: (name: string) => bytes(fixture.blocks[name]!) }
const value = (v: number | string) =>
  typeof v == "number" ? v : Number(v == "inf" ? Infinity : v == "-inf" ? -Infinity : NaN)

describe("decoding", async () => {
  const readings = await open(source)
  const [first] = readings as [Reading]

  it("gives every number that the writer had", async () => {
    for (const [n, reading] of readings.entries()) {
      const want = fixture.expected[n] as any
      const { L, T, K } = reading
      for (let t = 0; t < T; t++) await reading.load(t)
      const rowsAndPositions = range(L).flatMap(l => range(T).map(t => [l, t] as const))
      for (const [l, t] of rowsAndPositions) {
        for (const k of range(K)) {
          expect(reading.topId(l, t, k)).toBe(want.top_ids[l][t][k])
          expect(reading.topLogprob(l, t, k)).toBe(value(want.top_logprobs[l][t][k]))
          expect(reading.topRank(l, t, k)).toBe(want.top_ranks[l][t][k])
        }
        for (const name of ["entropy", "kl", "next_logprobs"]) {
          expect(reading.value(name, l, t)).toBe(value(want[name][l][t]))
        }
        expect(reading.value("next_ranks", l, t)).toBe(want.next_ranks[l][t] || NaN)
        const families = { track: reading.trackIds.length, candidate: reading.candidateIds[t]!.length }
        for (const [family, size] of Object.entries(families)) {
          for (const slot of range(size)) {
            const logprob = value(want[family + "_logprobs"][l][t][slot])
            expect(reading.value(family + "_logprobs", l, t, slot)).toBe(logprob)
            expect(reading.value(family + "_ranks", l, t, slot)).toBe(want[family + "_ranks"][l][t][slot])
          }
        }
      }
      want.pieces.forEach((piece: string | null, t: number) => {
        if (piece != null) expect(reading.pieces[t]).toBe(piece)
      })
    }
  })

  it("inflates a tile when it is asked for, once", async () => {
    const asked: string[] = []
    const read = (name: string) => {
      asked.push(name)
      return source.read(name)
    }
    const [reading] = (await open({ manifest, read })) as [Reading]
    asked.length = 0
    expect(reading.ready(0)).toBe(false)
    expect(reading.topLogprob(0, 0)).toBeNaN()
    expect(reading.topId(0, 0)).toBe(-1)
    await Promise.all([reading.load(0), reading.load(3), reading.load(1)])
    expect([asked.length, reading.ready(3), reading.ready(4)]).toEqual([1, true, false])
  })

  it("knows a token exactly if it is tracked, a candidate, next or in the top k, else as a bound", async () => {
    const want = fixture.expected[0] as any
    const { trackIds, nextIds, candidateIds } = first
    await first.load(0)
    expect(first.token(1, 2, trackIds[1]!).rank).toBe(want.track_ranks[1][2][1])
    const [candidate] = candidateIds[2]! as [number]
    expect(first.token(1, 2, candidate).rank).toBe(want.candidate_ranks[1][2][0])
    const top = first.topId(1, 2, 2)
    expect(first.token(1, 2, top).rank).toBe(want.top_ranks[1][2][2])
    const known = [nextIds[2]!, ...candidateIds[2]!, ...trackIds, ...want.top_ids[1][2]]
    const unknown = range(500).find(id => !known.includes(id))!
    expect(first.token(1, 2, unknown)).toEqual({ logprob: NaN, rank: Infinity })
  })

  it("reads single precision whole", () => {
    const values = new Float32Array([1e5, -0.25, NaN, 7])
    const bytes = new Uint8Array(values.buffer)
    const shuffled = Uint8Array.from({ length: 16 }, (_, i) => bytes[(i % 4) * 4 + (i >> 2)]!)
    const shape = { L: 2, T: 2, K: 1, C: 0, M: 0 }
    expect(unpackTile(shuffled, [["norm", "f32", 1]], 2, shape).norm).toEqual(values)
  })

  it("refuses foreign, older and newer data, and a tile of another length, in words", async () => {
    await expect(open({ ...source, manifest: { ...manifest, version: 1 } })).rejects.toThrow(
      "data are logitlens-page 1",
    )
    await expect(open({ ...source, manifest: {} as Manifest })).rejects.toThrow("undefined")
    const shape = { L: 1, T: 2, K: 1, C: 0, M: 0 }
    const short = () => unpackTile(new Uint8Array(7), [["entropy", "f16", 1]], 2, shape)
    expect(short).toThrow("holds 7 bytes")
  })

  it("tells when a tile cannot be read", async () => {
    const [reading] = (await open({
      manifest,
      read: name => (name.endsWith("head") ? source.read(name) : Promise.reject(Error("gone"))),
    })) as [Reading]
    let said: string | undefined
    reading.changed = problem => (said = problem)
    await reading.load(5)
    expect(said).toContain("Positions from 4 could not be read: gone")
  })
})
