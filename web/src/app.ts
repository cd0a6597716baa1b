/* The state of a page and what follows from it; the parts of the page read and change it here.
 *
 * Places are named in two ways: a layer and a column of the page's frame, in which several readings are
 * aligned, and a Cell, the row and position of one reading. */
import { scale, type Scale } from "./colour"
import { clamp, range } from "./dom"
import type { Frame, Reading, Statistic } from "./format"
import { findIds, findPositions } from "./search"
import { fromHash, toHash, type State } from "./state"
import { clip, visible } from "./text"
import { follow, LEAST, pinModes, statisticMode, type Mode, type Pin } from "./values"

export interface Cell {
  reading: Reading
  l: number
  t: number
}

export class App {
  /** labels of the layers of the frame */
  readonly layers: string[]
  /** per reading: the position of every column, the row of every layer; -1 for none */
  columns: number[][] = []
  readonly rows: number[][]
  /** layers shown, as indices into `layers` */
  shown: number[] = []
  /** per reading: ids that the search found */
  foundIds: Set<number>[] = []
  /** per reading: positions of the prompt that the search found, also across tokens */
  foundPositions: Set<number>[] = []
  /** all ways to colour: the statistics, then two for each pin */
  modes: Record<string, Mode> = {}
  dark = false
  state: State
  readonly start: State
  /** called after every change of state */
  changed: (patch: Partial<State>) => void = () => {}
  /** the columns as they are aligned, and which of them the filter leaves */
  private all: number[][]
  private kept: number[] = []
  private reaches: Record<string, number> = {}
  private translated: Record<string, number[]> = {}

  constructor(
    readonly readings: Reading[],
    private statistics: Statistic[],
    frame: Frame | null,
    hash: string,
  ) {
    const [first] = readings as [Reading]
    this.layers = frame?.layers ?? first.manifest.layers
    this.all = frame?.columns.map(positionsOf) ?? [range(first.T)]
    this.kept = range(this.all[0]!.length)
    this.columns = this.all
    this.rows = frame?.rows ?? [range(first.L)]
    // readings of one tokenizer name each other's ids
    for (const reading of readings) {
      const { vocab } = readings[this.home(reading)]!
      reading.vocab.forEach((piece, id) => vocab.set(id, piece))
      reading.vocab = vocab
    }
    this.start = {
      color: statistics[0]!.name,
      text: "token",
      map: "house",
      w: 0,
      h: 0,
      view: this.several ? "side" : "one",
      a: 0,
      b: this.several ? 1 : 0,
      from: 0,
      to: this.layers.length - 1,
      step: 1,
      cell: [],
      pins: [],
      pos: [],
      q: "",
      hide: "",
      upto: 0,
    }
    // tokens that were asked for are pinned, and what the model answers last is looked at
    const tracked = readings.flatMap(reading => reading.trackIds.map(id => [this.home(reading), id]))
    this.start.pins = [...new Map(tracked.map(pin => [pin.join(), pin])).values()].slice(0, 8)
    this.start.cell = [this.layers.length - 1, this.columnCount - 1]
    this.state = { ...this.start, ...fromHash(hash, this.start) }
    this.derive()
  }

  /** The state as it is written in an address. */
  get hash(): string {
    return toHash(this.state, this.start)
  }
  /** Take the state from an address that has changed. */
  fromAddress(hash: string) {
    this.set({ ...this.start, ...fromHash(hash, this.start) })
  }

  set(patch: Partial<State>) {
    Object.assign(this.state, patch)
    this.derive()
    this.changed(patch)
  }

  /** Keep the state within bounds, and find what depends on it. */
  private derive() {
    const { state, readings } = this
    const last = this.layers.length - 1
    const within = (value: number, low: number, high: number) => clamp(Math.round(value), low, high)
    state.from = within(state.from, 0, last)
    state.to = within(state.to, state.from, last)
    state.step = within(state.step, 1, last + 1)
    state.w = within(state.w, 0, 400)
    state.h = within(state.h, 0, 120)
    state.a = within(state.a, 0, readings.length - 1)
    state.b = within(state.b, 0, readings.length - 1)
    if (!this.several) state.view = "one"
    // a reading differs from another one
    if (state.view == "diff" && state.a == state.b) Object.assign(state, { a: 0, b: Math.max(1, state.a) })
    const hidden = state.hide.split(",")
    const sections = (c: number) => readings.map((reading, r) => reading.section[this.all[r]![c]!])
    this.kept = range(this.all[0]!.length).filter(c => !sections(c).some(s => s && hidden.includes(s)))
    // a filter that leaves nothing is none
    if (!this.kept.length) this.kept = range(this.all[0]!.length)
    state.upto = within(state.upto, 0, this.total)
    if (state.upto == this.total) state.upto = 0
    const shownColumns = this.kept.slice(0, state.upto || this.total)
    this.columns = this.all.map(own => shownColumns.map(c => own[c]!))
    const { columnCount } = this
    // the model's own row is always there to compare with
    this.shown = range(last + 1).filter(
      layer =>
        layer == last || (layer >= state.from && layer <= state.to && (layer - state.from) % state.step == 0),
    )
    state.pos = state.pos.filter(column => column >= 0 && column < columnCount)
    state.pins = state.pins.filter(([home, ...ids]) => readings[home!] && ids.length)
    const [layer = -1, column = -1] = state.cell
    if (!(layer >= 0 && layer <= last && column >= 0 && column < columnCount)) state.cell = []
    const query = state.q.toLowerCase()
    this.foundIds = readings.map(reading => findIds(reading, query))
    this.foundPositions = readings.map(reading => findPositions(reading, query))
    this.modes = Object.fromEntries(this.statistics.map(s => [s.name, statisticMode(s)]))
    state.pins.forEach((pin, i) => {
      const name = `“${clip(this.pinName(pin), 30)}”`
      const modes = pinModes(name, (reading, l, t) => this.pinValue({ reading, l, t }, pin))
      for (const [key, mode] of Object.entries(modes)) this.modes[key + i] = mode
    })
    if (!Object.hasOwn(this.modes, state.color)) state.color = this.start.color
  }

  /** Columns that the filter leaves, before the slider of time hides later ones. */
  get total(): number {
    return this.kept.length
  }
  /** How many columns of reading A (those that the filter leaves) came before the model wrote, -1 for all. */
  get generatedFrom(): number {
    const own = this.all[this.state.a]!
    return this.kept.findIndex(c => this.readingA.generated[own[c]!])
  }
  /** Leave sections of a chat out; what is chosen stays chosen where it is still there. */
  filter(hide: string) {
    const { cell, pos } = this.state
    const places = [cell[1] ?? -1, ...pos].map(column => this.kept[column]!)
    this.state.upto = 0
    this.set({ hide })
    const near = (place: number) =>
      Math.max(
        0,
        this.kept.findLastIndex(c => c <= place),
      )
    const [column, ...others] = places
    const kept = others.filter(place => this.kept.includes(place)).map(place => this.kept.indexOf(place))
    this.set({ cell: cell.length ? [cell[0]!, near(column!)] : [], pos: kept })
  }
  /** A column has come: a position that the model has just read. The cursor stays at the end. */
  append(part: Reading) {
    const { state, readings } = this
    const followed = state.cell[1] == this.columnCount - 1
    readings[0]!.append(part)
    this.all = [range(readings[0]!.T)]
    this.reaches = {}
    this.set({})
    if (followed) this.set({ cell: [state.cell[0]!, this.columnCount - 1] })
    else this.set({ upto: state.upto })
  }

  get several(): boolean {
    return this.readings.length > 1
  }
  get columnCount(): number {
    return this.columns[0]!.length
  }
  /** The reading chosen as A: the one that is seen, where only one is. */
  get readingA(): Reading {
    return this.readings[this.state.a]!
  }
  get readingB(): Reading {
    return this.readings[this.state.b]!
  }
  /** The readings in view, as indices. */
  get panes(): number[] {
    const { view, a, b } = this.state
    return view == "one" ? [a] : view == "diff" ? [a, b] : range(this.readings.length)
  }
  get mode(): Mode {
    return this.modes[this.state.color]!
  }
  get isDiff(): boolean {
    return this.state.view == "diff"
  }
  get scale(): Scale {
    const { map } = this.state
    if (this.isDiff) return scale(this.dark ? "dark" : "light")
    return scale(map == "house" ? (this.dark ? "night" : "day") : map)
  }

  /** The position of reading A in a column, -1 for none. */
  positionA(column: number): number {
    return this.columns[this.state.a]![column]!
  }
  /** A cell of one reading, or null where it has none. */
  cell(r: number, layer: number, column: number): Cell | null {
    const l = this.rows[r]![layer] ?? -1
    const t = this.columns[r]![column] ?? -1
    return l < 0 || t < 0 ? null : { reading: this.readings[r]!, l, t }
  }
  /** The cells of the readings in view at one place. */
  cells(layer: number, column: number): Cell[] {
    return this.panes.flatMap(r => this.cell(r, layer, column) ?? [])
  }

  /** One scale for all readings in view, so that the same colour means the same. */
  domain(): [number, number] {
    const all = this.panes.map(r => this.mode.domain(this.readings[r]!))
    const darkEnds = all.map(([dark]) => dark)
    const brightEnds = all.map(([, bright]) => bright)
    return all[0]![0] > all[0]![1]
      ? [Math.max(...darkEnds), Math.min(...brightEnds)]
      : [Math.min(...darkEnds), Math.max(...brightEnds)]
  }
  /** A cell on the scale of a mode (ranks in decades): NaN missing, ±Infinity beyond the scale. */
  measure(cell: Cell | null, mode = this.mode): number {
    const value = cell ? mode.value(cell.reading, cell.l, cell.t) : NaN
    if (mode.scale == "log") return Math.log10(Math.max(value, LEAST))
    return mode.scale == "rank" ? Math.log10(value) : value
  }
  /** B minus A, on the scale of a mode (ranks in decades), for colours; NaN where either is missing. */
  difference(layer: number, column: number, mode = this.mode): number {
    const { a, b } = this.state
    const value =
      this.measure(this.cell(b, layer, column), mode) - this.measure(this.cell(a, layer, column), mode)
    return Number.isFinite(value) ? value : NaN
  }
  /** The largest difference (99th percentile of a sample), for a scale that is even around 0. */
  reach(): number {
    const { columnCount, shown, mode } = this
    const { color, a, b, pins } = this.state
    const key = [color, a, b, pins].join()
    if (!this.reaches[key]) {
      const step = Math.ceil(columnCount / 400)
      const sizes = range(Math.ceil(columnCount / step))
        .flatMap(n => shown.map(layer => Math.abs(this.difference(layer, n * step, mode))))
        .filter(size => size >= 0)
        .sort((x, y) => x - y)
      this.reaches[key] = sizes[Math.floor(sizes.length * 0.99)] ?? 0
    }
    return this.reaches[key] || 1
  }
  /** Tiles have arrived: what was measured on fewer is measured again. */
  arrived() {
    this.reaches = {}
  }

  /** The reading whose ids are used for those of `reading`: the first of the same tokenizer. */
  home(reading: Reading): number {
    return this.readings.findIndex(other => other.manifest.vocabulary == reading.manifest.vocabulary)
  }
  pinName([home, ...ids]: Pin): string {
    return ids.map(id => visible(clip(this.readings[home!]!.piece(id), 40))).join(" + ")
  }
  /** The index of the pin that holds a token, -1 for none. */
  pinOf(reading: Reading, id: number): number {
    return this.state.pins.findIndex(([home, ...ids]) => home == this.home(reading) && ids.includes(id))
  }
  /** Pin a token, or let it go; `join` adds it to the last group. */
  pin(reading: Reading, id: number, join = false) {
    if (id < 0) return
    const home = this.home(reading)
    const at = this.pinOf(reading, id)
    const pins = this.state.pins.map(pin => [...pin])
    const last = pins.at(-1)
    if (at >= 0) pins[at] = [home, ...pins[at]!.slice(1).filter(other => other != id)]
    else if (join && last?.[0] == home) last.push(id)
    else pins.push([home, id])
    this.set({ pins })
  }
  /** What a cell says of a pin; in another vocabulary its tokens are found by their text. */
  pinValue({ reading, l, t }: Cell, [home, ...ids]: Pin) {
    const to = this.home(reading)
    if (to == home) return follow(reading, l, t, ids)
    const { vocab } = this.readings[home!]!
    this.translated[[to, home, ids].join()] ??= [...reading.vocab]
      .filter(([, piece]) => ids.some(id => vocab.get(id) == piece))
      .map(([id]) => id)
    return follow(reading, l, t, this.translated[[to, home, ids].join()]!)
  }
}

/** Positions of the columns, from runs of them. */
const positionsOf = (runs: Frame["columns"][number]) =>
  runs.flatMap(([start, length]) => (start < 0 ? Array<number>(length).fill(-1) : range(length, start)))
