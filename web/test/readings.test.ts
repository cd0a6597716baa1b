// @vitest-environment happy-dom
import { expect, it, vi } from "vitest"
import { Readings } from "../src/readings"
import type { Entry } from "../src/wire"

const entry = (id: string) => ({ id, label: id, model: "one", lens: "logit" }) as Entry

/** A list of one reading, what the server answers when it is let, and which readings were said to be gone. */
function listed() {
  const answers: ((body: unknown) => void)[] = []
  const fetch = (_: string, request?: RequestInit) =>
    request?.method == "DELETE"
      ? Promise.reject(TypeError("gone"))
      : new Promise(done => answers.push(body => done(Response.json(body))))
  vi.stubGlobal("fetch", fetch)
  const gone: string[] = []
  const hooks = { choose: () => {}, ticked: () => {}, deleted: (id: string) => void gone.push(id) }
  const start = { history: [entry("r1")], version: 1, models: [], loaded: null, lenses: [] }
  const limits = { characters: 1, tokens: 1, top: 1, written: 1 }
  const readings = new Readings({ ...start, limits }, hooks)
  readings.draw()
  return { readings, answers, gone }
}

it("a list that comes late does not take the place of a newer one", async () => {
  const { readings, answers } = listed()
  const both = [readings.refresh(), readings.refresh()]
  answers[1]!({ version: 3, history: [entry("r2"), entry("r1")] })
  await both[1]
  answers[0]!({ version: 2, history: [entry("r1")] })
  await both[0]
  expect(readings.latest!.id).toBe("r2")
})

it("a reading that could not be deleted stays", async () => {
  const { readings, answers, gone } = listed()
  readings.element.querySelector<HTMLElement>("[aria-label='Delete r1']")!.click()
  await vi.waitFor(() => expect(answers).toHaveLength(1))
  answers[0]!({ version: 1 })
  await new Promise(done => setTimeout(done, 20))
  expect([readings.find("r1")?.id, gone]).toEqual(["r1", []])
})
