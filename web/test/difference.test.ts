import { expect, it } from "vitest"
import { legend, legendNote } from "../src/export"
import { makeSheet } from "../src/sheet"
import { appOf } from "./pages"

/** The difference of two readings that have the same value in every cell. */
async function difference(color: string, a: number, b: number) {
  const app = await appOf(2, `view=diff&text=value&color=${color}`)
  app.readings.forEach((reading, r) => (reading.value = () => [a, b][r]!))
  const [[low], , [high]] = legend(app) as [[string], unknown, [string]]
  const sheet = makeSheet(app, 0)
  return { says: sheet.words(1, 1).first, shade: sheet.shade(1, 1), low, high, note: legendNote(app) }
}

it("a cell says the difference itself where its colour is on a logarithmic scale", async () => {
  const kl = await difference("kl", 0.1, 10)
  expect([kl.says, kl.shade]).toEqual(["+9.9", 255])
  expect((await difference("kl", 10, 0.1)).says).toBe("−9.9")
  const rank = await difference("rank", 1, 100)
  expect([rank.says, rank.shade]).toEqual(["+99", 255])
  expect((await difference("rank", NaN, 100)).says).toBe("–")
})

it("the legend of a difference says what its colours are of", async () => {
  const kl = await difference("kl", 0.1, 10)
  expect([kl.low, kl.high]).toEqual(["×0.01", "×100"])
  expect(kl.note).toBe("colours: as a factor; below 0.01 counts as 0.01")
  const rank = await difference("rank", 1, 100)
  expect([rank.low, rank.high, rank.note]).toEqual(["×0.01", "×100", "colours: as a factor"])
  const entropy = await difference("entropy", 2, 1.5)
  expect([entropy.says, entropy.high, entropy.note]).toEqual(["−0.5", "+0.5", "nats"])
  const prob = await difference("prob", Math.log(0.25), Math.log(0.75))
  expect([prob.says, prob.high, prob.note]).toEqual(["+50", "+50", "percentage points"])
})
