/* Pages for tests: the readings of the fixture, compared with themselves. */
import { App } from "../src/app"
import { range } from "../src/dom"
import { fromBase64, open, type Frame, type Manifest } from "../src/format"
import raw from "./fixture.json?raw"

const fixture = JSON.parse(raw) as { manifest: Manifest; blocks: Record<string, string> }
export const { manifest } = fixture
export const read = (name: string) => fromBase64(fixture.blocks[name]!).buffer as ArrayBuffer

/** The state of a page of the fixture's first reading, so many times side by side; all is inflated. */
export async function appOf(times: number, hash = ""): Promise<App> {
  const reading = manifest.readings[0]!
  const readings = await open({ manifest: { ...manifest, readings: Array(times).fill(reading) }, read })
  for (const each of readings) for (const t of range(each.T)) await each.load(t)
  const frame: Frame = {
    layers: reading.layers,
    columns: readings.map(({ T }) => [[0, T]]),
    rows: readings.map(({ L }) => range(L)),
  }
  return new App(readings, manifest.statistics, times > 1 ? frame : null, hash)
}
