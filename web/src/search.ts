/* Finding a text in the tokens of the prompt and of the cells, and a position by its number. */
import type { App } from "./app"
import { range } from "./dom"
import type { Reading } from "./format"
import { visible } from "./text"

/** Ids whose piece, or its visible form, holds the text. */
export function findIds({ vocab }: Reading, query: string): Set<number> {
  const matches = (piece: string) => `${piece}\0${visible(piece)}`.toLowerCase().includes(query)
  return new Set(query ? [...vocab].filter(([, piece]) => matches(piece)).map(([id]) => id) : [])
}

/** Positions of the prompt that the text covers, also across tokens. */
export function findPositions({ pieces }: Reading, query: string): Set<number> {
  const found = new Set<number>()
  if (!query) return found
  // the position of every character of the prompt
  const owner = pieces.flatMap((piece, t) => Array<number>(piece.length).fill(t))
  const text = pieces.join("").toLowerCase()
  for (let i = text.indexOf(query); i >= 0; i = text.indexOf(query, i + 1)) {
    for (const t of owner.slice(i, i + query.length)) found.add(t)
  }
  return found
}

/** The next place (or the previous one, for step -1) that the search found, as [layer, column]: in a
 * column the row in hand where the prompt has it, else the deepest that has it in a cell. */
export function findNext(
  app: App,
  layer: number,
  column: number,
  step: number,
): [layer: number, column: number] | undefined {
  const { columnCount, panes, shown } = app
  const deepestFirst = [...shown].reverse()
  for (const n of range(columnCount, 1)) {
    const next = (((column + n * step) % columnCount) + columnCount) % columnCount
    for (const r of panes) {
      if (app.foundPositions[r]!.has(app.columns[r]![next]!)) return [layer, next]
      const found = deepestFirst.find(other => {
        const cell = app.cell(r, other, next)
        return cell && cell.reading.slot(cell.l, cell.t, id => app.foundIds[r]!.has(id)) >= 0
      })
      if (found != null) return [found, next]
    }
  }
  return undefined
}
