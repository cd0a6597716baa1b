// @vitest-environment happy-dom
import { expect, it } from "vitest"
import { layerPlots, Panel } from "../src/panel"
import { appOf } from "./pages"

const suffixes = (plots: ReturnType<typeof layerPlots>) => [
  ...new Set(plots[0]!.lines.map(line => line.suffix.trim())),
]

it("a pinned position has its number in the prompt, of which only a part was read", async () => {
  const app = await appOf(1, "pos=[0]")
  app.readingA.head.positions = [2, 4, 5, 6, 7, 8, 9, 10, 11, 12]
  const panel = new Panel(
    app,
    () => {},
    () => {},
  )
  panel.draw(1, 1)
  const chips = [...panel.element.querySelectorAll(".chip")].map(chip => chip.textContent)
  expect(chips).toContainEqual(expect.stringMatching(/^2 .*×$/))
  expect(suffixes(layerPlots(app, 1, 1, 300))).toEqual(["@2", "@4"])
})

it("a pinned position that A does not have has its number in the reading that has it", async () => {
  const app = await appOf(2, "pos=[1]")
  app.columns[0]![1] = -1
  expect(suffixes(layerPlots(app, 1, 2, 300))).toEqual(["@1 A", "@2 A", "@1 B", "@2 B"])
})
