/* The grid: a canvas that draws only what is in view, under headers and a live cell in the DOM.
 *
 * Scrolling is the browser's own (a large empty box, the picture sticks to its corner), so wheels,
 * touch and scrollbars behave. Below 32 × 13 pixels a cell loses its words, below 5 its gap; the
 * colours of all cells in view are one small image, enlarged without smoothing. */
import { framed, h } from "./dom"
import { MISSING, MUTED, PENDING, type Sheet, type Words } from "./sheet"
import { fit, isRightToLeft } from "./text"

interface Hooks {
  /** the pointer is over a cell, or (-1) over none */
  hover(row: number, column: number): void
  /** a cell was chosen, or (row -1) a column's header */
  pick(row: number, column: number): void
  scrolled(): void
  zoom(factor: number): void
}

export type Place = [row: number, column: number]
/** Rows and columns to draw; the second of each pair is the first that is not. */
interface Extent {
  rows: [number, number]
  columns: [number, number]
}

/** Words and where to write them. */
interface Text extends Words {
  x: number
  y: number
  ink: string
}

const NOWHERE: Place = [-1, -1]
export const ROW_HEADER = 62
const SCROLLBAR = 15
/** Cells of at least this size have a gap, and words. */
const GAP = 5
const WITH_WORDS = { width: 32, height: 13, change: 24, twoLines: 36 }
/** Columns narrower than this have upright headers, or only every so many of them one. */
const UPRIGHT = 40
const SLIM = 14
/** Under the headers: from which layer each column's answer is settled. */
const STRIP = 15

export class Grid {
  cellWidth = 0
  cellHeight = 0
  cursor?: Place
  hovered?: Place
  readonly draw = framed(() => this.paint())
  readonly scroller: HTMLElement
  private headerHeight = 40
  private canvas = h("canvas", { "aria-hidden": "true" })
  private strip = h("canvas", { "aria-hidden": "true" })
  private columnHeaders = h("div", { role: "row", "aria-rowindex": 1 })
  private headerBox = h("div.cols", this.columnHeaders)
  private rowHeaders = h("div.rows", { role: "rowgroup" })
  private liveCell: HTMLElement
  private liveRow: HTMLElement
  private picture: HTMLElement
  private space: HTMLElement
  private image = h("canvas")
  /** words cut to the width of a cell */
  private fitted = new Map<string, string>()
  private columnElements = new Map<number, HTMLElement>()
  private rowElements = new Map<number, HTMLElement>()
  private hatch?: CanvasPattern | null

  constructor(
    public sheet: Sheet,
    hooks: Hooks,
    id: string,
  ) {
    this.liveCell = h("div", { role: "gridcell", id })
    this.liveRow = h("div.sr", { role: "row" }, this.liveCell)
    this.picture = h(
      "div.stick",
      this.canvas,
      this.headerBox,
      this.strip,
      this.rowHeaders,
      h(
        "div.corner",
        h("span", "layer"),
        h(
          "span",
          { title: "the layer from which the answer stays on top; the darker, the earlier" },
          "settled",
        ),
      ),
      this.liveRow,
    )
    this.space = h("div", this.picture)
    this.scroller = h(
      "div.sc",
      { role: "grid", tabindex: 0, "aria-activedescendant": id, "aria-label": sheet.name },
      this.space,
    )
    this.listen(hooks)
  }

  private listen({ hover, pick, scrolled, zoom }: Hooks) {
    const { picture, scroller } = this
    const placeOf = (event: MouseEvent): Place => {
      const box = picture.getBoundingClientRect()
      return this.locate(event.clientX - box.left, event.clientY - box.top)
    }
    scroller.onscroll = () => {
      this.draw()
      scrolled()
    }
    picture.onpointermove = event => hover(...placeOf(event))
    picture.onpointerleave = () => hover(...NOWHERE)
    picture.onclick = event => {
      const place = placeOf(event)
      if (place[1] >= 0) pick(...place)
    }
    const wheel = (event: WheelEvent) => {
      if (!event.ctrlKey && !event.metaKey) return
      event.preventDefault()
      zoom(event.deltaY < 0 ? 1.25 : 0.8)
    }
    scroller.addEventListener("wheel", wheel, { passive: false })
  }

  /** Pixels that the cells have, beside and below the headers. */
  get width(): number {
    return Math.max(0, this.scroller.clientWidth - ROW_HEADER)
  }
  get height(): number {
    return Math.max(0, this.scroller.clientHeight - this.headerHeight)
  }
  /** Columns in view: the first, and the first that is not. */
  get columnsInView(): [number, number] {
    const left = this.scroller.scrollLeft
    const stop = Math.ceil((left + this.width) / this.cellWidth)
    return [Math.floor(left / this.cellWidth), Math.min(this.sheet.columnCount, stop)]
  }
  /** Top of a row in the picture; the last row is held at the lower edge while its place is below. */
  private top(row: number): number {
    const top = row * this.cellHeight - this.scroller.scrollTop
    const held = row == this.sheet.rowCount - 1 && this.height > 3 * this.cellHeight
    return held ? Math.min(top, this.height - this.cellHeight) : top
  }

  /** Set the size of the cells; the grid is at most `limit` pixels high. */
  resize(cellWidth: number, cellHeight: number, limit: number) {
    const { scroller, sheet } = this
    this.cellWidth = cellWidth
    this.cellHeight = cellHeight
    const form = cellWidth >= UPRIGHT ? "" : cellWidth >= SLIM ? "upright" : "slim"
    this.headerHeight = { "": 40, upright: 84, slim: 22 }[form] + STRIP
    this.headerBox.className = `cols ${form}`
    const width = ROW_HEADER + sheet.columnCount * cellWidth
    const height = this.headerHeight + sheet.rowCount * cellHeight
    this.space.style.cssText = `width:${width}px;height:${height}px;--head:${this.headerHeight}px;--strip:${STRIP}px`
    const scrollbar = width > scroller.clientWidth ? SCROLLBAR : 1
    scroller.style.height = `${Math.min(height + scrollbar, Math.max(160, limit))}px`
    scroller.setAttribute("aria-rowcount", String(sheet.rowCount + 1))
    scroller.setAttribute("aria-colcount", String(sheet.columnCount + 1))
    this.refresh()
  }
  /** Headers carry pins and marks, words their width: make them again. */
  refresh() {
    this.fitted.clear()
    for (const elements of [this.columnElements, this.rowElements]) {
      elements.forEach(element => element.remove())
      elements.clear()
    }
    this.draw()
  }

  /** Row (-1: a header, or none) and column (-1: none) at a point of the picture. */
  private locate(x: number, y: number): Place {
    const { scroller, sheet, headerHeight, cellHeight } = this
    const column = Math.floor((x - ROW_HEADER + scroller.scrollLeft) / this.cellWidth)
    const below = y - headerHeight
    if (x < ROW_HEADER || column >= sheet.columnCount || below > this.height) return NOWHERE
    const last = sheet.rowCount - 1
    if (below > this.top(last) + cellHeight) return NOWHERE
    if (below < 0) return [-1, column]
    if (below >= this.top(last)) return [last, column]
    return [Math.min(last, Math.floor((below + scroller.scrollTop) / cellHeight)), column]
  }

  /** Where a cell is on the screen. */
  rect(row: number, column: number): DOMRect {
    const box = this.picture.getBoundingClientRect()
    const left = box.left + ROW_HEADER + column * this.cellWidth - this.scroller.scrollLeft
    return new DOMRect(left, box.top + this.headerHeight + this.top(row), this.cellWidth, this.cellHeight)
  }

  /** Scroll as little as needed to have a cell in view with a margin of one, or to its centre. */
  reveal(row: number, column: number, centre = false) {
    const { scroller, cellWidth, cellHeight, width } = this
    const left = scrollTo(scroller.scrollLeft, column * cellWidth, cellWidth, width)
    const moves = left != scroller.scrollLeft
    scroller.scrollLeft = centre && moves ? column * cellWidth - width / 2 : left
    if (row >= 0) {
      // The last row is always in view: above it then those in which the answer forms.
      const room = this.height - cellHeight
      const shown = Math.min(row, this.sheet.rowCount - 2)
      scroller.scrollTop = scrollTo(scroller.scrollTop, shown * cellHeight, cellHeight, room)
    }
    this.draw()
  }

  /** Name the chosen cell for a screen reader. */
  speak() {
    const [row, column] = this.cursor!
    this.liveRow.setAttribute("aria-rowindex", String(row + 2))
    this.liveCell.setAttribute("aria-colindex", String(column + 2))
    this.liveCell.textContent = this.sheet.speak(row, column)
  }

  private paint() {
    const { scroller, sheet, cellHeight, width, height } = this
    if (!scroller.clientWidth || !scroller.clientHeight || !this.cellWidth) return
    const left = this.prepareCanvas()
    const css = getComputedStyle(scroller)
    const context = this.canvas.getContext("2d", { alpha: false })!
    const ratio = devicePixelRatio || 1
    context.setTransform(ratio, 0, 0, ratio, 0, 0)
    context.fillStyle = css.backgroundColor
    context.fillRect(0, 0, width, height)
    const columns = this.columnsInView
    const last = sheet.rowCount - 1
    const lastTop = this.top(last)
    const firstRow = Math.floor(scroller.scrollTop / cellHeight)
    const rows: [number, number] = [
      firstRow,
      Math.min(last, Math.ceil((scroller.scrollTop + height) / cellHeight)),
    ]
    sheet.load(...columns)
    this.paintCells(context, { rows, columns }, left, css)
    // the model's own row is set off by a rule
    context.fillStyle = css.backgroundColor
    context.fillRect(0, lastTop - 4, width, cellHeight + 4)
    this.paintCells(context, { rows: [last, last + 1], columns }, left, css)
    context.fillStyle = css.color
    const ruleWidth = Math.min(width, sheet.columnCount * this.cellWidth - left)
    if (cellHeight >= GAP) context.fillRect(0, lastTop - 2, ruleWidth, 1.5)
    this.outline(context, this.hovered, left, css.color, 1.5, css.backgroundColor)
    this.outline(context, this.cursor, left, css.outlineColor, 2.5, css.backgroundColor)
    this.drawHeaders(left, { rows, columns })
    this.paintStrip(left, columns, css)
  }

  /** How early each column's answer is settled, as a tint, and from which layer, where there is room. */
  private paintStrip(left: number, columns: [number, number], css: CSSStyleDeclaration) {
    const { strip, sheet, cellWidth, width, headerHeight } = this
    const ratio = devicePixelRatio || 1
    strip.width = Math.round(width * ratio)
    strip.height = Math.round(STRIP * ratio)
    strip.style.cssText = `width:${width}px;height:${STRIP}px;left:${ROW_HEADER}px;top:${headerHeight - STRIP}px`
    const context = strip.getContext("2d")!
    context.setTransform(ratio, 0, 0, ratio, 0, 0)
    context.font = `10px ${css.fontFamily}`
    context.textBaseline = "middle"
    for (let column = columns[0]; column < columns[1]; column++) {
      const { text, early } = sheet.settled(column)
      const x = column * cellWidth - left
      context.fillStyle = css.outlineColor
      context.globalAlpha = 0.06 + 0.34 * early
      context.fillRect(x, 0, Math.max(1, cellWidth - 1), STRIP - 1)
      context.globalAlpha = 1
      context.fillStyle = css.color
      if (cellWidth >= 30) context.fillText(this.fitText(context, text), x + 5, STRIP / 2)
    }
  }

  /** Give the canvas the size of the view; the left edge of the view, in whole device pixels. */
  private prepareCanvas(): number {
    const { canvas, scroller, width, height } = this
    const ratio = devicePixelRatio || 1
    const pixelWidth = Math.round(width * ratio)
    const pixelHeight = Math.round(height * ratio)
    if (canvas.width != pixelWidth || canvas.height != pixelHeight) {
      canvas.width = pixelWidth
      canvas.height = pixelHeight
    }
    this.picture.style.cssText = `width:${scroller.clientWidth}px;height:${scroller.clientHeight}px`
    const place = `left:${ROW_HEADER}px;top:${this.headerHeight}px`
    canvas.style.cssText = `width:${width}px;height:${height}px;${place}`
    return Math.round(scroller.scrollLeft * ratio) / ratio
  }

  private outline(
    context: CanvasRenderingContext2D,
    place: Place | undefined,
    left: number,
    colour: string,
    thickness: number,
    background: string,
  ) {
    if (!place) return
    const [row, column] = place
    const last = this.sheet.rowCount - 1
    // a row that is covered by the last one has no outline
    if (row < last && this.top(row) > this.top(last) - this.cellHeight / 2) return
    const width = Math.max(this.cellWidth, 6) - 1
    const height = Math.max(this.cellHeight, 6) - 1
    context.strokeStyle = background
    context.lineWidth = thickness + 2
    context.strokeRect(column * this.cellWidth - left, this.top(row), width, height)
    context.strokeStyle = colour
    context.lineWidth = thickness
    context.strokeRect(column * this.cellWidth - left, this.top(row), width, height)
  }

  private paintCells(
    context: CanvasRenderingContext2D,
    extent: Extent,
    left: number,
    css: CSSStyleDeclaration,
  ) {
    const { sheet, cellWidth, cellHeight, image } = this
    const { rows, columns } = extent
    const columnCount = columns[1] - columns[0]
    const rowCount = rows[1] - rows[0]
    if (columnCount <= 0 || rowCount <= 0) return
    const { rgba, ink } = sheet.scale
    const x0 = columns[0] * cellWidth - left
    const y0 = this.top(rows[0])
    const each = (visit: (n: number, row: number, column: number, x: number, y: number) => void) => {
      for (let n = 0; n < rowCount * columnCount; n++) {
        const i = Math.floor(n / columnCount)
        const j = n % columnCount
        visit(n, rows[0] + i, columns[0] + j, x0 + j * cellWidth, y0 + i * cellHeight)
      }
    }
    const shades = new Int16Array(rowCount * columnCount)
    const data = new ImageData(columnCount, rowCount)
    const pixels = new Uint32Array(data.data.buffer)
    each((n, row, column) => {
      shades[n] = sheet.shade(row, column)
      pixels[n] = rgba[shades[n]!] ?? 0
    })
    image.width = columnCount
    image.height = rowCount
    image.getContext("2d")!.putImageData(data, 0, 0)
    context.imageSmoothingEnabled = false
    context.drawImage(image, x0, y0, columnCount * cellWidth, rowCount * cellHeight)
    if (cellWidth >= GAP && cellHeight >= GAP) {
      context.fillStyle = this.hatch ??= hatching(context)
      each((n, _row, _column, x, y) => {
        if (shades[n] == MISSING) context.fillRect(x, y, cellWidth, cellHeight)
      })
      context.fillStyle = css.backgroundColor
      for (let j = 0; j <= columnCount; j++)
        context.fillRect(x0 + j * cellWidth - 1, y0, 1, rowCount * cellHeight)
      for (let i = 0; i <= rowCount; i++)
        context.fillRect(x0, y0 + i * cellHeight - 1, columnCount * cellWidth, 1)
    }
    const grey = css.getPropertyValue("--soft")
    const inkOf = (n: number) => (shades[n] == MUTED ? grey : (ink[shades[n]!] ?? css.color))
    context.textBaseline = "middle"
    if (cellWidth >= WITH_WORDS.width && cellHeight >= WITH_WORDS.height) {
      const texts: Text[] = []
      each((n, row, column, x, y) => {
        if (shades[n] == PENDING) return
        const words = sheet.words(row, column)
        if (words.first) texts.push({ ...words, x, y, ink: inkOf(n) })
      })
      this.paintTexts(context, texts, css.fontFamily)
    }
    each((n, row, column, x, y) => {
      if (!sheet.isFound(row, column)) return
      context.strokeStyle = inkOf(n)
      context.lineWidth = cellWidth > 12 ? 2 : 1
      context.strokeRect(x + 1.5, y + 1.5, cellWidth - 4, cellHeight - 4)
    })
  }

  /** Ordinary words first, then in bold those that agree with the final row: few changes of font. */
  private paintTexts(context: CanvasRenderingContext2D, texts: Text[], family: string) {
    const middle = this.cellHeight / 2
    for (const bold of [false, true]) {
      const font = `${bold ? 650 : 400} 12px ${family}`
      context.font = font
      for (const { first, second, strong, change, x, y, ink } of texts) {
        if (strong != bold) continue
        context.fillStyle = ink
        const write = (text: string, down = 0) =>
          context.fillText(this.fitWord(context, text, bold), x + 5, y + middle + down)
        const small = (text: string, down: number) => {
          context.font = font.replace("12px", "10px")
          context.fillText(this.fitText(context, text), x + 5, y + middle + down)
          context.font = font
        }
        if (change && context.measureText(first).width > this.cellWidth - 10) {
          // what became of it counts: below the former where there is room, else alone
          const isHigh = this.cellHeight >= WITH_WORDS.change
          if (!isHigh) small("→" + change[1], 0)
          else change.forEach((text, i) => small((i ? "→" : "") + text, i ? 4 : -7))
        } else if (this.cellHeight >= WITH_WORDS.twoLines && second) {
          write(first, -7)
          small(second, 8)
        } else write(first)
      }
    }
  }

  /** A text that fits into a cell. */
  private fitText(context: CanvasRenderingContext2D, text: string): string {
    return fit(text, this.cellWidth - 10, s => context.measureText(s).width)
  }
  /** As `fitText`, kept for the next frame, and with a direction of its own. */
  private fitWord(context: CanvasRenderingContext2D, text: string, bold: boolean): string {
    const key = +bold + text
    let word = this.fitted.get(key)
    if (word == null) {
      word = this.fitText(context, text)
      if (isRightToLeft(word)) word = `\u2068${word}\u2069`
      this.fitted.set(key, word)
    }
    return word
  }

  /** Only the headers in view exist; they move with their container. */
  private drawHeaders(left: number, { rows, columns }: Extent) {
    const { sheet, cellWidth, cellHeight, columnElements, rowElements } = this
    const last = sheet.rowCount - 1
    const slim = cellWidth < SLIM
    // narrow columns have room for a number only every so often
    const every = slim ? [5, 10, 20, 25, 50, 100].find(n => n * cellWidth >= 46)! : 1
    const skip = Math.ceil(14 / cellHeight)
    const room = this.top(last) - Math.max(14, cellHeight / 2)

    keepOnly(columnElements, n => n >= columns[0] && n < columns[1] && n % every == 0)
    for (let column = columns[0]; column < columns[1]; column++) {
      if (column % every || columnElements.has(column)) continue
      const element = this.columnHeader(column, every, slim)
      columnElements.set(column, element)
      this.columnHeaders.append(element)
    }
    const isWanted = (row: number) =>
      row == last || (row >= rows[0] && row < rows[1] && row % skip == 0 && this.top(row) < room)
    keepOnly(rowElements, isWanted)
    for (let row = rows[0]; row <= last; row++) {
      if (!isWanted(row) || rowElements.has(row)) continue
      const element = this.rowHeader(row, row == last)
      rowElements.set(row, element)
      this.rowHeaders.append(element)
    }
    this.columnHeaders.style.transform = `translateX(${-left}px)`
    this.rowHeaders.style.height = `${this.height}px`
    const [currentRow, currentColumn] = this.hovered ?? this.cursor ?? NOWHERE
    for (const [row, element] of rowElements) {
      element.style.transform = `translateY(${this.top(row)}px)`
      element.classList.toggle("on", row == currentRow)
    }
    for (const [column, element] of columnElements) element.classList.toggle("on", column == currentColumn)
  }

  private columnHeader(column: number, every: number, slim: boolean): HTMLElement {
    const { text, position, special, pinned } = this.sheet.columnLabel(column)
    return h(
      "div",
      {
        role: "columnheader",
        "aria-colindex": column + 2,
        title: text,
        class: (special ? "special " : "") + (pinned ? "pinned" : ""),
        style: `left:${column * this.cellWidth}px;width:${every * this.cellWidth}px`,
      },
      h("small", position),
      !slim && h("bdi", text),
    )
  }

  private rowHeader(row: number, last: boolean): HTMLElement {
    return h(
      last ? "div.last" : "div",
      { role: "row", "aria-rowindex": row + 2, style: `line-height:${Math.max(this.cellHeight, 12)}px` },
      h("span", { role: "rowheader" }, this.sheet.rowLabel(row)),
    )
  }
}

/** Where to scroll so that a cell is in view with a margin of its own size. */
function scrollTo(now: number, start: number, size: number, room: number): number {
  if (start - size < now) return start - size
  return start + 2 * size > now + room ? start + 2 * size - room : now
}

function keepOnly(elements: Map<number, HTMLElement>, isWanted: (n: number) => boolean) {
  for (const [n, element] of elements) {
    if (isWanted(n)) continue
    element.remove()
    elements.delete(n)
  }
}

function hatching(context: CanvasRenderingContext2D): CanvasPattern {
  const tile = h("canvas", { width: 6, height: 6 })
  const pen = tile.getContext("2d")!
  pen.strokeStyle = "#8889"
  for (const offset of [-6, 0, 6]) {
    pen.moveTo(offset, 6)
    pen.lineTo(offset + 6, 0)
  }
  pen.stroke()
  return context.createPattern(tile, "repeat")!
}
