/* What a grid draws: the cells of one reading, or of the difference of two; and a cell in words. */
import type { App, Cell } from "./app"
import type { Scale } from "./colour"
import { clamp } from "./dom"
import { clip, letter, prob, visible } from "./text"
import { delta, settled } from "./values"

/** What a cell says on its two lines. */
export interface Words {
  first: string
  second: string
  /** set in bold */
  strong: boolean
  /** of a difference: what `first` says became of what, for cells that have no room for it in one line */
  change?: [before: string, after: string]
}

/** A table of colours and words; a row is one of the layers shown. */
export interface Sheet {
  name: string
  rowCount: number
  columnCount: number
  scale: Scale
  /** columns first … stop - 1 are about to be drawn */
  load(first: number, stop: number): void
  /** place on the scale 0 … 255, or one of the two below */
  shade(row: number, column: number): number
  words(row: number, column: number): Words
  /** found by the search */
  isFound(row: number, column: number): boolean
  rowLabel(row: number): string
  columnLabel(column: number): { text: string; position: string; special: boolean; pinned: boolean }
  /** from which layer a column's answer stays on top: its label, and how early that is (0 … 1) */
  settled(column: number): { text: string; early: number }
  speak(row: number, column: number): string
}

/** Shades of a cell without a value, and of one whose value has not arrived. */
export const MISSING = -1
export const PENDING = -2
/** Shade of the row embed, which repeats the input: no colour, and words in grey. */
export const MUTED = -3

/** The sheet of reading r, or of the difference where that is in view. */
export function makeSheet(app: App, r: number): Sheet {
  const { state, shown, columns, readings, mode, isDiff } = app
  const { a, b } = state
  const used = isDiff ? [a, b] : [r]
  const reach = isDiff ? app.reach() : 1
  const [low, high] = isDiff ? [-reach, reach] : app.domain()
  const label = (index: number) => readings[index]!.manifest.label
  const cellsAt = (row: number, column: number) => used.map(index => app.cell(index, shown[row]!, column))
  return {
    name: isDiff ? `${letter(b)} − ${letter(a)}: ${label(b)} − ${label(a)}` : label(r),
    rowCount: shown.length,
    columnCount: app.columnCount,
    scale: app.scale,

    load(first, stop) {
      for (const index of used) {
        for (const t of columns[index]!.slice(first, stop)) if (t >= 0) readings[index]!.load(t)
      }
    },

    shade(row, column) {
      const layer = shown[row]!
      const arrived = () => cellsAt(row, column).every(cell => !cell || cell.reading.ready(cell.t))
      if (app.layers[layer] == "embed" && app.layers.length > 1) return arrived() ? MUTED : PENDING
      const value = isDiff
        ? app.difference(layer, column, mode)
        : app.measure(app.cell(r, layer, column), mode)
      if (Number.isNaN(value)) return arrived() ? MISSING : PENDING
      // beyond the scale is known to be at its dark end
      if (Math.abs(value) == Infinity) return 0
      return clamp(Math.round((255 * (value - low)) / (high - low || 1)), 0, 255)
    },

    words(row, column) {
      const [cell, other] = cellsAt(row, column) as [Cell | null, Cell | null]
      if (state.text == "none" || (!cell && !other)) return { first: "", second: "", strong: false }
      let word = topToken(cell)
      let value: string
      let strong: boolean
      let change: Words["change"]
      if (isDiff) {
        const after = topToken(other)
        value = delta(
          mode,
          [cell, other].map(each => (each ? mode.value(each.reading, each.l, each.t) : NaN)),
        )
        strong = !!word && !!after && word != after
        if (strong) change = [word, after]
        word = strong ? `${word} → ${after}` : word || after
      } else {
        value = cell ? mode.short(mode.value(cell.reading, cell.l, cell.t)) : ""
        strong = !!cell && cell.reading.topId(cell.l, cell.t) == cell.reading.finalId(cell.t)
      }
      return state.text == "value"
        ? { first: value, second: "", strong }
        : { first: word, second: value, strong, change }
    },

    isFound(row, column) {
      if (!state.q) return false
      return used.some(index => {
        const cell = app.cell(index, shown[row]!, column)
        return !!cell && cell.reading.slot(cell.l, cell.t, id => app.foundIds[index]!.has(id)) >= 0
      })
    },

    rowLabel: row => app.layers[shown[row]!]!,

    columnLabel(column) {
      const present = used.filter(index => columns[index]![column]! >= 0)
      const reading = readings[present[0] ?? r]!
      const t = columns[present[0] ?? r]![column]!
      const texts = present.map(index =>
        visible(clip(readings[index]!.pieces[columns[index]![column]!]!, 200)),
      )
      return {
        text: [...new Set(texts)].join(" / "),
        position: t < 0 ? "" : String(reading.positionNumber(t)),
        special: reading.special.has(reading.ids[t]!),
        pinned: state.pos.includes(column),
      }
    },

    settled(column) {
      const found = used.flatMap(index => {
        const t = columns[index]![column]!
        const reading = readings[index]!
        return t < 0 || !reading.ready(t) ? [] : [[reading, settled(reading, t)] as const]
      })
      const texts = found.map(([reading, l]) => reading.layer(l))
      const [first] = found
      return {
        text: [...new Set(texts)].join("→"),
        early: first && first[0].L > 1 ? 1 - first[1] / (first[0].L - 1) : 0,
      }
    },

    speak: (row, column) => sentence(app, shown[row]!, column),
  }
}

const topToken = (cell: Cell | null) =>
  cell ? visible(cell.reading.piece(cell.reading.topId(cell.l, cell.t))) : ""

/** A cell in words, for a screen reader. */
export function sentence(app: App, layer: number, column: number): string {
  const { mode, several, readings } = app
  const sentences = app.cells(layer, column).map(({ reading, l, t }) => {
    const name = several ? `${letter(readings.indexOf(reading))}, ${reading.manifest.label}: ` : ""
    const input = visible(clip(reading.pieces[t]!, 40))
    const top = visible(clip(reading.piece(reading.topId(l, t)), 40))
    const value = mode.format(mode.value(reading, l, t))
    return (
      `${name}layer ${reading.layer(l)}, position ${reading.positionNumber(t)}, after ${input}: ` +
      `${top}, ${prob(reading.topLogprob(l, t))}; ${mode.label.toLowerCase()} ${value}`
    )
  })
  return sentences.join(". ") || "no such cell"
}

/** The sheets to show: one for each reading in view, or one of the difference. */
export const sheetIndices = (app: App) => (app.isDiff ? [app.state.a] : app.panes)
