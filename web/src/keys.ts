/* What the arrow keys and their like mean in the grid. */
import { clamp } from "./dom"
import type { Grid, Place } from "./grid"

/** Where a key leads from a cell (row and column of the grid); nothing for other keys. */
export function destination(event: KeyboardEvent, grid: Grid, [row, column]: Place): Place | undefined {
  const { rowCount, columnCount } = grid.sheet
  const lastRow = rowCount - 1
  const lastColumn = columnCount - 1
  const corner = event.ctrlKey || event.metaKey
  const pageRows = Math.max(1, Math.floor(grid.height / grid.cellHeight) - 2)
  const pageColumns = Math.max(1, Math.floor(grid.width / grid.cellWidth) - 1)
  const page = (sign: number): Place =>
    event.shiftKey ? [row, column + sign * pageColumns] : [row + sign * pageRows, column]
  const places: Record<string, Place> = {
    ArrowUp: [row - 1, column],
    ArrowDown: [row + 1, column],
    ArrowLeft: [row, column - 1],
    ArrowRight: [row, column + 1],
    Home: [corner ? 0 : row, 0],
    End: [corner ? lastRow : row, lastColumn],
    PageUp: page(-1),
    PageDown: page(1),
  }
  const to = places[event.key]
  return to && [clamp(to[0], 0, lastRow), clamp(to[1], 0, lastColumn)]
}
