// @vitest-environment happy-dom
import { expect, it } from "vitest"
import { heatmap } from "../src/patches"

it("a share that does not exist is a dash without a colour", () => {
  const ends = { logit: 1, logprob: -1 }
  const grid = {
    layers: ["embed", "0"],
    pieces: ["The", " Colosseum"],
    clean_pieces: ["The", " Tower"],
    restored: [
      [null, 0],
      [null, 1],
    ],
    token: " Paris",
    versus: null,
    clean: ends,
    corrupted: ends,
  }
  const cells = [...heatmap(grid).querySelectorAll<HTMLElement>("td")]
  expect(cells.map(cell => cell.textContent)).toEqual(["–", "100", "–", "0"])
  expect(cells.map(cell => !!cell.style.background)).toEqual([false, true, false, true])
})
