/* All positions in one strip, with the part in view framed; a click or a drag goes there. */
import type { App } from "./app"
import { h } from "./dom"
import type { Grid } from "./grid"
import type { Sheet } from "./sheet"

const HEIGHT = 36

export class Overview {
  private canvas = h("canvas", { "aria-hidden": "true" })
  private view = h("div.view")
  readonly element = h("div.overview", { hidden: true }, this.canvas, this.view)
  /** the cells have changed since the strip was drawn */
  stale = true

  constructor(
    private app: App,
    go: (column: number) => void,
  ) {
    const { element } = this
    element.onpointerdown = element.onpointermove = event => {
      if (!event.buttons) return
      const box = element.getBoundingClientRect()
      element.setPointerCapture(event.pointerId)
      go(((event.clientX - box.left) / box.width) * app.columnCount)
    }
  }

  draw({ sheet, scroller, cellWidth, width }: Grid) {
    const { element, canvas, view } = this
    const { columnCount } = this.app
    element.hidden = columnCount * cellWidth <= width + 1
    const total = element.clientWidth
    if (!total) return
    const perColumn = total / columnCount
    const left = (scroller.scrollLeft / cellWidth) * perColumn
    const shown = Math.max(4, (width / cellWidth) * perColumn)
    view.style.cssText = `left:${left}px;width:${shown}px`
    if (!this.stale && canvas.width == total) return
    this.stale = false
    this.paint(sheet, total)
  }

  /** A pixel shows the middle one of its positions: no mean of unlike things. */
  private paint(sheet: Sheet, width: number) {
    const height = Math.min(HEIGHT, sheet.rowCount)
    const data = new ImageData(width, height)
    const pixels = new Uint32Array(data.data.buffer)
    for (let y = 0; y < height; y++) {
      const row = Math.round((y * (sheet.rowCount - 1)) / Math.max(1, height - 1))
      for (let x = 0; x < width; x++) {
        const column = Math.floor(((x + 0.5) * sheet.columnCount) / width)
        pixels[y * width + x] = sheet.scale.rgba[sheet.shade(row, column)] ?? 0
      }
    }
    this.canvas.width = width
    this.canvas.height = height
    this.canvas.getContext("2d")!.putImageData(data, 0, 0)
  }
}
