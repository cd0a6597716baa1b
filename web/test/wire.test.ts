import { expect, test } from "vitest"
import { lines, progress, words } from "../src/wire"

test("every state has words", () => {
  expect(words({ state: "sent" })).toBe("Sending …")
  expect(words({ state: "waiting", ahead: 0 })).toBe("Starting …")
  expect(words({ state: "waiting", ahead: 1 })).toBe("Waiting: 1 prompt ahead of yours")
  expect(words({ state: "waiting", ahead: 3 })).toBe("Waiting: 3 prompts ahead of yours")
  expect(words({ state: "loading", model: "gpt2" })).toBe("Loading gpt2 …")
  expect(words({ state: "running", phase: "blocks", done: 1, total: 8, tokens: 1, lens: "logit" })).toBe(
    "Running 1 token through 8 blocks …",
  )
  expect(words({ state: "running", phase: "positions", done: 1, total: 9, tokens: 9, lens: "tuned" })).toBe(
    "Reading 9 positions with the tuned lens …",
  )
  // as the server tells of a grid of patches, which has neither a prompt's tokens nor a lens
  expect(words({ state: "running", phase: "layers", done: 1, total: 9, tokens: 0, lens: "" })).toBe(
    "Patching 9 layers …",
  )
  expect(words({ state: "done", seconds: 0.07 })).toBe("Done in 0.07 s")
  expect(words({ state: "cancelled", message: "cancelled at block 3 of 8" })).toBe(
    "Cancelled at block 3 of 8",
  )
  expect(words({ state: "error", message: "out of memory" })).toBe("out of memory")
})

test("how far a run is", () => {
  expect(progress({ state: "running", phase: "blocks", done: 3, total: 8 })).toBe("block 3 of 8")
  expect(progress({ state: "running", phase: "positions", done: 256, total: 900 })).toBe(
    "position 256 of 900",
  )
  expect(progress({ state: "running", phase: "layers", done: 2, total: 9 })).toBe("layer 2 of 9")
  expect(progress({ state: "loading", model: "gpt2" })).toBe("")
})

test("lines arrive whole, however the stream is cut", async () => {
  const text = '{"state":"waiting","ahead":0}\n{"state":"loading","model":"模型"}\n{"state":"done"}\n'
  const bytes = new TextEncoder().encode(text)
  for (const size of [1, 7, 1000]) {
    const body = new ReadableStream<Uint8Array>({
      start(c) {
        for (let i = 0; i < bytes.length; i += size) c.enqueue(bytes.slice(i, i + size))
        c.close()
      },
    })
    const seen = []
    for await (const e of lines(body)) seen.push(e)
    expect(seen.map(e => e.state)).toEqual(["waiting", "loading", "done"])
    expect(seen[1]!.model).toBe("模型")
  }
})
