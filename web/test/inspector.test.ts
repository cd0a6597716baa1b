// @vitest-environment happy-dom
import { expect, it } from "vitest"
import { h } from "../src/dom"
import { Inspector } from "../src/inspector"
import { appOf } from "./pages"

/** An inspector of two readings of which one is seen, and what it was asked. */
async function inspected() {
  const app = await appOf(2, "view=one&a=0")
  const asked: ((answer: string) => void)[] = []
  const attribute = () => new Promise<HTMLElement>(done => asked.push(answer => done(h("div.who", answer))))
  const inspector = new Inspector(
    app,
    { attribute },
    () => {},
    () => {},
    () => {},
  )
  const card = () => inspector.element.querySelector(".who")?.textContent
  const look = (a: number, layer: number, column: number) => {
    app.set({ a })
    inspector.draw(layer, column)
  }
  const ask = () => inspector.element.querySelector<HTMLElement>("[aria-label^='Who wrote']")!.click()
  /** The answer to a question arrives. */
  const say = async (question: number, answer: string) => {
    asked[question]!(answer)
    await Promise.resolve()
    await Promise.resolve()
  }
  return { card, look, ask, say }
}

it("who wrote a token is said beside its own cell, and beside that of no other reading", async () => {
  const { card, look, ask, say } = await inspected()
  look(0, 1, 2)
  ask()
  await say(0, "mlp 3")
  expect(card()).toBe("mlp 3")
  look(1, 1, 2)
  expect(card()).toBeUndefined()
  look(0, 1, 3)
  expect(card()).toBeUndefined()
  look(0, 1, 2)
  expect(card()).toBe("mlp 3")
})

it("an answer that comes late is not put beside the cell that is looked at by then", async () => {
  const { card, look, ask, say } = await inspected()
  look(0, 1, 2)
  ask()
  look(1, 1, 2)
  await say(0, "mlp 3")
  expect(card()).toBeUndefined()
  look(0, 1, 2)
  expect(card()).toBe("mlp 3")
  ask()
  look(1, 1, 2)
  ask()
  await say(2, "attn 1")
  await say(1, "mlp 3")
  expect(card()).toBe("attn 1")
})
