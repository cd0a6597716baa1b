/* From the picture back to the data: text, Python, CSV, a table, and the figure as SVG and PNG. */
import type { App } from "./app"
import { h, range, svg } from "./dom"
import { makeSheet, sheetIndices, type Sheet } from "./sheet"
import { clip, count, isRightToLeft, prob } from "./text"
import { LEAST, settled, shortNumber, ticks, type Mode } from "./values"

/** Part of the grid: columns first … stop - 1, all layers shown. */
export interface Part {
  first: number
  stop: number
}

const columnsOf = ({ first, stop }: Part) => range(stop - first, first)

export function download(name: string, data: Blob) {
  const url = URL.createObjectURL(data)
  h("a", { href: url, download: name }).click()
  setTimeout(() => URL.revokeObjectURL(url), 10_000)
}

/** Whether a text could be put on the clipboard. */
export async function toClipboard(text: string, box: HTMLElement): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text)
    return true
  } catch {
    // no clipboard without a secure address or a permission: the old way
    const area = h("textarea.sr", { value: text })
    box.append(area)
    area.select()
    const done = document.execCommand("copy")
    area.remove()
    return done
  }
}

/** Statistics of the cell itself, as the manifest names them. */
const cellModes = (app: App) => Object.values(app.modes).filter(mode => mode.statistic)

/** Lines of text for one cell. */
export function asText(app: App, layer: number, column: number): string {
  const texts = app.cells(layer, column).map(({ reading, l, t }) => {
    const { label, about } = reading.manifest
    const place = `layer ${reading.layer(l)} · position ${reading.positionNumber(t)}`
    const lines = [`${label} · ${about.lens} · ${place}, after ${JSON.stringify(reading.pieces[t])}`]
    for (const k of range(reading.K)) {
      const id = reading.topId(l, t, k)
      if (id < 0) continue
      const probability = prob(reading.topLogprob(l, t, k))
      lines.push(
        `${reading.topRank(l, t, k)}\t${probability}\t${JSON.stringify(reading.piece(id))}\t(id ${id})`,
      )
    }
    const statistics = cellModes(app).map(
      mode => `${mode.statistic!.label} ${mode.format(mode.value(reading, l, t))}`,
    )
    lines.push([...statistics, `settled from layer ${reading.layer(settled(reading, t))}`].join(" · "))
    const next = reading.nextIds[t]!
    if (next >= 0) {
      const { rank, logprob } = reading.token(l, t, next)
      lines.push(`next token ${JSON.stringify(reading.piece(next))}: rank ${count(rank)}, ${prob(logprob)}`)
    }
    return lines.join("\n")
  })
  return texts.join("\n\n")
}

/** Python that makes the reading again and goes to the cell. */
export function asPython(app: App, layer: number, column: number): string {
  const parts = app.cells(layer, column).map(({ reading, l, t }) => {
    const values = (value: (k: number) => string | number) => range(reading.K).map(value).join(", ")
    const ids = values(k => reading.topId(l, t, k))
    const logprobs = values(k => reading.topLogprob(l, t, k).toPrecision(4))
    return [
      reading.manifest.about.code,
      `reading.top_ids[${l}, ${t}]  # ${ids}`,
      `reading.top_logprobs[${l}, ${t}]  # ${logprobs}`,
    ].join("\n")
  })
  return parts.join("\n\n")
}

/** One line per slot of every cell; missing values are empty. */
export function asCSV(app: App, part: Part): string {
  const modes = cellModes(app)
  const names = modes.map(mode => mode.statistic!.name)
  const head = ["reading", "layer", "position", "input_id", "input", "rank", "id", "token", "logprob"]
  const lines: unknown[][] = [[...head, ...names, "next_id", "next_rank", "next_logprob"]]
  for (const column of columnsOf(part)) {
    for (const layer of app.shown) {
      for (const { reading, l, t } of app.cells(layer, column)) {
        const { ids, nextIds } = reading
        const input = [
          reading.manifest.label,
          reading.layer(l),
          reading.positionNumber(t),
          ids[t],
          reading.pieces[t],
        ]
        const cell = [
          ...modes.map(mode => mode.value(reading, l, t)),
          nextIds[t]! < 0 ? NaN : nextIds[t],
          reading.value("next_ranks", l, t),
          reading.value("next_logprobs", l, t),
        ]
        for (const k of range(reading.K)) {
          const id = reading.topId(l, t, k)
          if (id < 0) continue
          const token = [reading.topRank(l, t, k), id, reading.piece(id), reading.topLogprob(l, t, k)]
          lines.push([...input, ...token, ...cell])
        }
      }
    }
  }
  return csvLines(lines)
}

export const csvLines = (lines: unknown[][]) => lines.map(line => line.map(csvField).join()).join("\n") + "\n"

function csvField(value: unknown): string {
  if (typeof value == "number") {
    if (!Number.isFinite(value)) return ""
    return String(Number.isInteger(value) ? value : +value.toPrecision(5))
  }
  const text = String(value)
  return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text
}

/** Real tables of a part, `width` columns each, for reading aloud, copying and printing. */
export const tables = (app: App, part: Part, width: number): HTMLElement[] =>
  sheetIndices(app).flatMap(r => {
    const sheet = makeSheet(app, r)
    const columns = columnsOf(part)
    const starts = range(Math.ceil(columns.length / width)).map(n => n * width)
    return starts.map(start => table(sheet, columns.slice(start, start + width)))
  })

function table(sheet: Sheet, columns: number[]): HTMLElement {
  const heading = (scope: string, ...children: (string | Node)[]) => h("th", { scope }, children)
  const labels = columns.map(column => sheet.columnLabel(column))
  const positions = `positions ${labels[0]!.position} – ${labels.at(-1)!.position}`
  return h(
    "table.real",
    h("caption", h("bdi", sheet.name), `: the top token, ${positions}`),
    h(
      "thead",
      h(
        "tr",
        heading("col", "layer"),
        labels.map(({ position, text }) =>
          heading("col", h("small", position), " ", h("bdi", clip(text, 24))),
        ),
      ),
    ),
    h(
      "tbody",
      range(sheet.rowCount).map(row =>
        h(
          "tr",
          heading("row", sheet.rowLabel(row)),
          columns.map(column => {
            const { first, second } = sheet.words(row, column)
            return h("td", h("bdi", clip(first, 24) || "–"), " ", h("small", second))
          }),
        ),
      ),
    ),
  )
}

const BLACK = "#1a1d21"
const GREY = "#596068"
const EMPTY = "#eceef0"
const ROW = 22
const ROW_HEADER = 58
/** height of a reading's title and column headers, and of the legend */
const ABOVE = 78
const LEGEND = 72

/** A pen for the figure. */
class Pen {
  readonly svg: SVGElement

  constructor(width: number, height: number) {
    this.svg = svg("svg", {
      xmlns: "http://www.w3.org/2000/svg",
      viewBox: `0 0 ${width} ${height}`,
      width,
      height,
      "font-family": "system-ui,'Segoe UI','Noto Sans',sans-serif",
      "font-size": 11.5,
    })
    this.rect(0, 0, width, height, "#fff")
  }
  rect(x: number, y: number, width: number, height: number, fill: string) {
    this.svg.append(svg("rect", { x, y, width, height, fill }))
  }
  text(x: number, y: number, text: string, { fill = BLACK, anchor = "start", weight = 400 } = {}) {
    const isolated = isRightToLeft(text) ? `\u2068${text}\u2069` : text
    this.svg.append(svg("text", { x, y, fill, "text-anchor": anchor, "font-weight": weight }, isolated))
  }
}

/** The grid as a figure: a part of it, with headers, a legend and where it comes from. */
export function figure(app: App, part: Part, cellWidth: number): SVGElement {
  const list = sheetIndices(app)
  const columns = columnsOf(part)
  const cell = Math.max(44, Math.min(120, cellWidth))
  const each = ABOVE + app.shown.length * ROW
  // beside the colour scale a difference says more
  const width = Math.max(app.isDiff ? 580 : 440, ROW_HEADER + columns.length * cell + 16)
  const height = list.length * each + LEGEND
  const pen = new Pen(width, height)
  list.forEach((r, n) => {
    const sheet = makeSheet(app, r)
    const { about } = app.readings[r]!.manifest
    const top = n * each + 62
    pen.text(12, top - 42, clip(sheet.name, Math.floor(width / 7)), { weight: 650 })
    const source = `${about.model} · ${about.lens} · ${about.check}`
    pen.text(12, top - 24, clip(source, Math.floor(width / 6.2)), { fill: GREY })
    drawCells(pen, sheet, columns, cell, top)
  })
  for (let i = 0; i < 64; i++) pen.rect(ROW_HEADER + i * 3, height - 44, 3.2, 10, app.scale.css[i * 4]!)
  for (const [label, place] of legend(app)) {
    const anchor = place < 0.1 ? "start" : place > 0.9 ? "end" : "middle"
    pen.text(ROW_HEADER + place * 192, height - 20, label, { fill: GREY, anchor })
  }
  pen.text(ROW_HEADER + 204, height - 35, clip((app.isDiff ? "Difference: " : "") + app.mode.label, 60))
  pen.text(ROW_HEADER + 204, height - 20, legendNote(app), { fill: GREY })
  return pen.svg
}

function drawCells(pen: Pen, sheet: Sheet, columns: number[], cell: number, top: number) {
  columns.forEach((column, j) => {
    const label = clip(sheet.columnLabel(column).text, cell / 7)
    pen.text(ROW_HEADER + (j + 0.5) * cell, top - 3, label, { anchor: "middle", weight: 650 })
  })
  for (let row = 0; row < sheet.rowCount; row++) {
    const y = top + 4 + row * ROW
    const isLast = row == sheet.rowCount - 1
    pen.text(ROW_HEADER - 7, y + 15, sheet.rowLabel(row), { anchor: "end", weight: isLast ? 650 : 400 })
    columns.forEach((column, j) => {
      const shade = sheet.shade(row, column)
      const x = ROW_HEADER + j * cell
      const { first, strong } = sheet.words(row, column)
      pen.rect(x, y, cell - 1, ROW - 1, sheet.scale.css[shade] ?? EMPTY)
      if (!first) return
      const style = { fill: sheet.scale.ink[shade] ?? GREY, anchor: "middle", weight: strong ? 650 : 400 }
      pen.text(x + cell / 2, y + 15, clip(first, (cell - 6) / 6.6), style)
    })
    if (isLast) pen.rect(ROW_HEADER, y - 2, columns.length * cell - 1, 1.5, BLACK)
  }
}

/** What is written under the colour scale: words and their places 0 … 1. */
export function legend(app: App): [text: string, place: number][] {
  const { mode } = app
  if (!app.isDiff) return ticks(mode, ...app.domain())
  const reach = app.reach()
  const label = (value: number) => {
    // on a logarithmic scale a difference is a ratio
    if (isLogarithmic(mode)) return "×" + shortNumber(10 ** value)
    return (value > 0 ? "+" : "") + shortNumber(mode.scale == "probability" ? 100 * value : value)
  }
  return [
    [label(-reach), 0],
    ["same", 0.5],
    [label(reach), 1],
  ]
}

/** What the numbers of the legend of a difference are; the cells say the difference itself. */
export function legendNote({ isDiff, mode }: App): string {
  if (!isDiff || mode.scale == "yes or no") return ""
  if (mode.scale == "probability") return "percentage points"
  if (!isLogarithmic(mode)) return mode.unit
  return "colours: as a factor" + (mode.scale == "log" ? `; below ${LEAST} counts as ${LEAST}` : "")
}
const isLogarithmic = ({ scale }: Mode) => scale == "rank" || scale == "log"

/** The figure as pixels, twice as fine as on the screen. */
export async function png(figure: SVGElement): Promise<Blob | null> {
  const width = Number(figure.getAttribute("width"))
  const height = Number(figure.getAttribute("height"))
  // browsers draw canvases of at most 16,384 pixels
  const factor = Math.min(2, 16_000 / Math.max(width, height))
  const image = new Image()
  image.src = "data:image/svg+xml," + encodeURIComponent(figure.outerHTML)
  await image.decode()
  const canvas = h("canvas", { width: Math.round(width * factor), height: Math.round(height * factor) })
  canvas.getContext("2d")!.drawImage(image, 0, 0, canvas.width, canvas.height)
  return new Promise(done => canvas.toBlob(done))
}
