import { expect, it } from "vitest"
import { appOf } from "./pages"

it("an address that makes no sense does not break the page", async () => {
  const { start } = await appOf(1)
  for (const hash of [
    "pins=[5]",
    "pins=[[0,3],5]",
    "pins=[[0,[3]]]",
    "pins=[[0,1.5]]",
    "pins=5",
    'pins=[["a"]]',
    "pins=null",
    "cell=[0.5,1]",
    "cell=[[0,1]]",
    "cell=3",
    "pos=[[1]]",
    "pos={}",
    "from=[1]",
    "w=x",
    "color=constructor",
    "color=none",
  ]) {
    const app = await appOf(1, hash)
    expect(app.state, hash).toEqual(start)
    expect(app.domain(), hash).toHaveLength(2)
  }
  expect((await appOf(1, "map=constructor")).scale.css).toHaveLength(256)
})

it("an address that was written is read again", async () => {
  const hash = "color=kl&w=50&cell=[1,2]&pins=[[0,3],[0,4,5]]&pos=[1,2]&q=the"
  const { state } = await appOf(1, hash)
  const { color, w, cell, pins, pos, q } = state
  expect({ color, w, cell, pins, pos, q }).toEqual({
    color: "kl",
    w: 50,
    cell: [1, 2],
    pins: [
      [0, 3],
      [0, 4, 5],
    ],
    pos: [1, 2],
    q: "the",
  })
})
