/* Under the grid: what is followed, as chips, and its trajectories over layers and over positions. */
import type { App, Cell } from "./app"
import type { Line, Plot } from "./chart"
import { DASHES, LINES } from "./colour"
import { h, range } from "./dom"
import type { TokenValue } from "./format"
import { dot } from "./inspector"
import { Slots } from "./slots"
import { clip, letter, visible } from "./text"
import { candidates, type Pin } from "./values"

/** Positions that a chart over positions shows at most. */
const SPAN = 121

/** What the charts follow: pins, then what the model answers there, then (without pins) its rivals. */
function followed(app: App, column: number): Pin[] {
  const { pins } = app.state
  if (!pins.length) return suggested(app, column)
  const answers = app.panes.flatMap(r => {
    const t = app.columns[r]![column]!
    const [answer] = app.readings[r]!.candidateIds[t] ?? []
    return answer == null ? [] : [[app.home(app.readings[r]!), answer]]
  })
  const named = pins.flatMap(([home, ...ids]) => ids.map(id => `${home},${id}`))
  const unpinned = new Map(answers.map(pin => [pin.join(), pin]))
  return [...pins, ...[...unpinned.values()].filter(pin => pin[1]! >= 0 && !named.includes(pin.join()))]
}

/** Tokens to follow at a column: the candidates of the readings in view. */
function suggested(app: App, column: number): Pin[] {
  const lists = app.panes.map(r => {
    const reading = app.readings[r]!
    const t = app.columns[r]![column]!
    return t < 0 ? [] : candidates(reading, t).map(id => [app.home(reading), id])
  })
  // of several readings in turn: first what each ends with
  const inTurn = range(6).flatMap(n => lists.flatMap(list => (list[n] ? [list[n]] : [])))
  const unique = new Map(inTurn.map(pin => [pin.join(), pin]))
  return [...unique.values()].slice(0, 12 / app.panes.length)
}

/** The charts at a place of the grid, so many pixels wide; `go` is called with a place that is clicked. */
type Plots = (app: App, layer: number, column: number, width: number, go?: Go) => Plot[]
type Go = (layer: number, column: number) => void

/** Charts over layers at a column: the followed tokens, and the statistic of the cells where one is the
 * colour. */
export const layerPlots: Plots = (app, layer, column, width, go) => {
  const { state, layers, readingA } = app
  const position = app.positionA(column)
  const many = state.pos.length > 0
  const columns = many ? [...new Set([...state.pos, column])].slice(-5) : [column]
  // embed repeats the input, and would set the scale of all others
  const shown = app.shown.filter(index => layers[index] != "embed" || layers.length == 1)
  const where =
    columns.length > 1
      ? "at the pinned positions"
      : position < 0
        ? ""
        : `after “${visible(clip(readingA.pieces[position]!, 12))}” (${readingA.positionNumber(position)})`
  const base = {
    width,
    empty: empty(app, layer, column),
    xs: shown.map(index => layers[index]!),
    at: shown.indexOf(layer),
    xlabel: "layer",
    pick: go && ((x: number) => go(shown[x]!, column)),
  }
  const tracks = columns.map(c => shown.map(index => [index, c] as const))
  return plotsOf(app, base, where, followed(app, column), columns, tracks)
}

/** Charts over positions at a layer. */
export const positionPlots: Plots = (app, layer, column, width, go) => {
  const { layers, readingA, columnCount } = app
  const first = Math.max(0, Math.min(column - (SPAN - 1) / 2, columnCount - SPAN))
  const near = range(Math.min(columnCount, SPAN), first)
  const base = {
    width,
    empty: empty(app, layer, column),
    xs: near.map(c => {
      const t = app.positionA(c)
      if (t < 0) return ""
      return near.length * 52 > width ? String(readingA.positionNumber(t)) : readingA.pieces[t]!
    }),
    at: column - first,
    from: near.findIndex(c => app.readingA.generated[app.positionA(c)]),
    xlabel: "position",
    pick: go && ((x: number) => go(layer, first + x)),
  }
  const tracks = [near.map(c => [layer, c] as const)]
  return plotsOf(app, base, `at layer ${layers[layer]}`, followed(app, column), [column], tracks)
}

function empty(app: App, layer: number, column: number): string {
  const ready = app.cells(layer, column).every(({ reading, t }) => reading.ready(t))
  return ready ? "not recorded here" : "…"
}

/** Probability and rank of tokens; and the statistic of the cells, where one is the colour. */
function plotsOf(
  app: App,
  base: Omit<Plot, "title" | "axis" | "ylabel" | "lines">,
  where: string,
  pins: Pin[],
  columns: number[],
  tracks: Track[],
): Plot[] {
  const { mode } = app
  const lines = (key: keyof TokenValue) => tokenLines(app, pins, key, columns, tracks)
  const out: Plot[] = [
    {
      ...base,
      title: `Probability ${where}`,
      ylabel: "probability (log)",
      axis: "probability",
      lines: lines("logprob"),
    },
    { ...base, title: `Rank ${where}`, ylabel: "rank (log)", axis: "rank", lines: lines("rank") },
  ]
  if (!mode.statistic) return out
  const { unit, scale } = mode.statistic
  const axis = scale == "rank" || scale == "probability" ? scale : "linear"
  const ylabel = (scale == "linear" || scale == "log") && unit ? unit : mode.statistic.label
  const title = `${mode.label} ${where}`
  return [...out, { ...base, title, ylabel, axis, lines: cellLines(app, columns, tracks) }]
}

/** The places along a line. */
type Track = (readonly [layer: number, column: number])[]

/** What tells the lines of one token apart: the pinned position, the reading. */
function suffix(app: App, r: number, column: number, columns: number[]): string {
  const position = columns.length > 1 ? ` @${nameOf(app, column).position}` : ""
  return position + (app.panes.length > 1 ? ` ${letter(r)}` : "")
}

/** Number and token of a column's position, in the first reading in view that has it. */
function nameOf(app: App, column: number): { position: string; piece: string } {
  const r = app.panes.find(r => app.columns[r]![column]! >= 0)
  if (r == null) return { position: "", piece: "" }
  const t = app.columns[r]![column]!
  return { position: String(app.readings[r]!.positionNumber(t)), piece: app.readings[r]!.pieces[t]! }
}

const yOf = (app: App, r: number, track: Track, value: (cell: Cell) => number) =>
  track.map(([layer, column]) => {
    const cell = app.cell(r, layer, column)
    return cell ? value(cell) : NaN
  })

function tokenLines(
  app: App,
  pins: Pin[],
  key: keyof TokenValue,
  columns: number[],
  tracks: Track[],
): Line[] {
  const { panes } = app
  const value = (pin: Pin) => (cell: Cell) => {
    const found = app.pinValue(cell, pin)
    return found.rank == Infinity ? NaN : found[key]
  }
  return pins.flatMap((pin, i) =>
    panes.flatMap((r, pane) =>
      tracks.map((track, n) => ({
        name: clip(app.pinName(pin), 20),
        suffix: suffix(app, r, columns[n]!, columns),
        colour: LINES[i % LINES.length]!,
        dash: DASHES[(pane + n * panes.length) % DASHES.length]!,
        ys: yOf(app, r, track, value(pin)),
      })),
    ),
  )
}

/** Lines of the statistic that the cells are coloured by. */
function cellLines(app: App, columns: number[], tracks: Track[]): Line[] {
  const { mode, panes } = app
  return panes.flatMap((r, pane) =>
    tracks.map((track, n) => ({
      name: mode.statistic!.label,
      suffix: suffix(app, r, columns[n]!, columns),
      colour: LINES[n % LINES.length]!,
      dash: DASHES[pane % DASHES.length]!,
      ys: yOf(app, r, track, ({ reading, l, t }) => {
        // what repeats the input would set the scale of all others
        if (reading.layer(l) == "embed" && reading.L > 1) return NaN
        const value = mode.value(reading, l, t)
        return mode.scale == "probability" ? Math.log(value) : value
      }),
    })),
  )
}

export class Panel {
  private chips = h("div.chips")
  private slots: Slots
  private note = h("p.note", { hidden: true })
  readonly element: HTMLElement

  constructor(
    private app: App,
    private go: Go,
    say: (text: string) => void,
  ) {
    this.slots = new Slots(say, "Trajectories over positions")
    this.element = h(
      "section.panel",
      { "aria-label": "Followed tokens" },
      this.chips,
      this.slots.element,
      this.note,
    )
  }

  draw(layer: number, column: number) {
    const { app, slots, note } = this
    const pins = followed(app, column)
    this.chips.replaceChildren(...this.pinChips(pins, column), ...this.positionChips())
    const all = slots.width
    const perLine = all > 620 ? 2 : 1
    const each = Math.floor((all - 12 * (perLine - 1)) / perLine)
    slots.draw(positionPlots(app, layer, column, each, this.go))
    const { trackIds, candidateIds } = app.readingA
    const t = app.positionA(column)
    const exact = new Set([...trackIds, ...((t >= 0 && candidateIds[t]) || [])])
    note.hidden =
      !app.readingA.ready(Math.max(0, t)) || !pins.some(([, ...ids]) => ids.some(id => !exact.has(id)))
    note.textContent =
      `Gaps: not among the top ${app.readingA.K} there, so not recorded. Tracked tokens and those that ` +
      "the last row puts first are exact everywhere."
  }

  private pinChips(list: Pin[], column: number): Node[] {
    const { app } = this
    const { pins } = app.state
    const link = (label: string, onclick: () => void) => h("button.link", { onclick }, label)
    if (!pins.length) {
      return [
        h("span.lab", "Top tokens at this position"),
        ...list.map((pin, i) =>
          chip(clip(app.pinName(pin), 28), "+", "Pin", () => app.set({ pins: [pin] }), dot(i)),
        ),
      ]
    }
    const out: Node[] = [
      h("span.lab", "Pinned"),
      ...pins.map((pin, i) => {
        const remove = () => app.set({ pins: pins.filter(other => other != pin) })
        return chip(clip(app.pinName(pin), 28), "×", "Remove", remove, dot(i))
      }),
    ]
    if (pins.length > 1) out.push(link("group", () => app.set({ pins: grouped(app) })))
    if (pins.some(([, ...ids]) => ids.length > 1)) {
      const ungrouped = () => pins.flatMap(([home, ...ids]) => ids.map(id => [home!, id]))
      out.push(link("ungroup", () => app.set({ pins: ungrouped() })))
    }
    out.push(link("clear", () => app.set({ pins: [] })))
    const named = pins.flatMap(([home, ...ids]) => ids.map(id => `${home},${id}`))
    const rest = suggested(app, column).filter(pin => !named.includes(pin.join()))
    if (rest.length) out.push(h("span.lab", "Top tokens at this position"))
    for (const pin of rest) {
      const at = list.findIndex(other => other.join() == pin.join())
      const add = () => app.set({ pins: [...pins, pin] })
      out.push(chip(clip(app.pinName(pin), 28), "+", "Pin", add, at < 0 ? undefined : dot(at)))
    }
    return out
  }

  private positionChips(): Node[] {
    const { app } = this
    const { pos } = app.state
    if (!pos.length) return []
    return [
      h("span.lab", "Positions"),
      ...pos.map(column => {
        const { position, piece } = nameOf(app, column)
        const remove = () => app.set({ pos: pos.filter(other => other != column) })
        return chip(`${position} ${visible(clip(piece, 16))}`, "×", "Remove", remove)
      }),
    ]
  }
}

/** All pins of a reading as one. */
const grouped = ({ readings, state: { pins } }: App) =>
  range(readings.length).map(r => [r, ...pins.filter(([home]) => home == r).flatMap(([, ...ids]) => ids)])

const chip = (label: string, sign: string, action: string, onclick: () => void, mark?: Node) =>
  h(
    "span.chip",
    mark,
    h("bdi", label),
    h("button", { "aria-label": `${action} ${label}`, title: action, onclick }, sign),
  )
