/* The page: its parts, what happens in them, and what has to be drawn again. */
import type { App } from "./app"
import { chart } from "./chart"
import { clamp, framed, h, range } from "./dom"
import { asCSV, asPython, asText, download, figure, png, tables, toClipboard, type Part } from "./export"
import { Grid, ROW_HEADER, type Place } from "./grid"
import { Inspector, type TokenActions } from "./inspector"
import type { Reading } from "./format"
import { destination } from "./keys"
import { Overview } from "./overview"
import { layerPlots, Panel, positionPlots } from "./panel"
import { Prompt } from "./prompt"
import { findNext } from "./search"
import { makeSheet, sentence, sheetIndices } from "./sheet"
import type { State } from "./state"
import { clip, letter } from "./text"
import { Time } from "./time"
import { Tools, type Actions } from "./tools"

export interface Options {
  /** "auto" follows the system; hosts that know better say so */
  theme?: "auto" | "light" | "dark"
  /** keep the state in the address bar */
  hash?: boolean
  /** pixels the grid may be high */
  height?: number
  /** a state to begin with, as in the address */
  state?: string
  /** what the host can do with a token */
  actions?: TokenActions
  /** called with the pinned ids that a reading (by its number) does not know in every cell */
  follow?(missing: [reading: number, ids: number[]][]): void
}

/** Columns that a table, a picture and a copy hold at most. */
const TABLE_COLUMNS = 60
const COPY_COLUMNS = 200
const PRINT_COLUMNS = 8
const VIEWS = ["one", "side", "diff"]
/** From so many pixels on the inspector is beside the grid. */
const WIDE = 820
/** Cells are at most so large. */
const WIDEST = 170
const ZOOM = { width: 240, height: 64 }

export class Page {
  private grids: Grid[] = []
  private gridBox = h("div.grids")
  private live = h("div.sr", { "aria-live": "polite" })
  private toast = h("div.toast", { role: "status", hidden: true })
  private paper = h("div.print")
  private tools: Tools
  private prompt: Prompt
  private inspector: Inspector
  private panel: Panel
  private overview: Overview
  private time: Time
  private redraw = framed(() => this.draw())
  /** inspector and charts follow the pointer, else the cursor */
  private redrawPanel = framed(() => {
    const [row, column] = this.hovered ?? []
    const place = row == null ? this.place : ([this.app.shown[row]!, column!] as const)
    this.inspector.draw(...place)
    this.panel.draw(...place)
  })
  private hovered?: Place
  private columnsDrawn = 0
  /** the grid that was used last, among those side by side */
  private active = 0
  private closed = new AbortController()
  private savingAddress?: ReturnType<typeof setTimeout>
  private hidingToast?: ReturnType<typeof setTimeout>

  constructor(
    private box: HTMLElement,
    title: string,
    private app: App,
    private options: Options,
  ) {
    const actions: Actions = {
      zoom: factor => this.zoom(factor),
      fit: () => this.fit(),
      copy: what => void this.copy(what),
      save: what => void this.save(what),
      table: () => this.showTable(),
      find: step => this.find(step),
      leave: () => this.leave(),
    }
    this.tools = new Tools(app, title, actions)
    this.prompt = new Prompt(app, column => this.go(this.place[0], column, true))
    const go = (layer: number, column: number) => this.go(layer, column)
    const say = (text: string) => this.say(text)
    this.inspector = new Inspector(app, options.actions ?? {}, go, () => this.leave(), say)
    this.panel = new Panel(app, go, say)
    this.overview = new Overview(app, column =>
      this.grids.forEach(grid => (grid.scroller.scrollLeft = column * grid.cellWidth - grid.width / 2)),
    )
    this.time = new Time(app)
    const { tools, prompt, panel, overview, inspector } = this
    // the grid is the first that the Tab key reaches; the style puts the tools above it
    box.append(
      tools.head,
      prompt.element,
      h("div.main", this.gridBox, overview.element, this.time.element),
      inspector.element,
      panel.element,
      tools.bar,
      this.live,
      this.toast,
      tools.help,
      tools.tableDialog,
      this.paper,
    )
    box.classList.toggle("wide", box.clientWidth >= WIDE)
    this.listen()
    this.applyTheme()
    this.buildGrids()
    void this.loadRest()
    this.followPins()
    const [layer, column] = app.state.cell
    if (layer != null) requestAnimationFrame(() => this.go(layer, column!, true))
  }

  private listen() {
    const { app, box, options } = this
    const { signal } = this.closed
    const darkSystem = matchMedia("(prefers-color-scheme: dark)")
    darkSystem.addEventListener("change", () => this.applyTheme(), { signal })
    // a host that changes its theme says so: "light", "dark" or "auto"
    const onMessage = ({ data }: MessageEvent) => {
      if (!/^(light|dark|auto)$/.test(data)) return
      options.theme = data
      this.applyTheme()
    }
    addEventListener("message", onMessage, { signal })
    addEventListener("beforeprint", () => this.print(), { signal })
    // a wide page has its inspector beside the grid, a narrow one below
    let width = 0
    const onResize = new ResizeObserver(() => {
      if (box.clientWidth == width) return
      width = box.clientWidth
      box.classList.toggle("wide", width >= WIDE)
      this.resizeCells()
      this.redraw()
    })
    onResize.observe(box)
    signal.addEventListener("abort", () => onResize.disconnect())
    addEventListener("resize", () => this.resizeCells(), { signal })
    if (options.hash) addEventListener("hashchange", () => app.fromAddress(location.hash), { signal })
    // in a notebook the host keeps the keys that are pressed outside of the page
    const keyTarget: EventTarget = options.hash ? document : box
    keyTarget.addEventListener("keydown", event => this.onKey(event as KeyboardEvent), { signal })
    for (const reading of app.readings) {
      reading.changed = problem => {
        if (problem) this.say(problem)
        app.arrived()
        this.prompt.refresh()
        this.refreshSheets()
        for (const grid of this.grids) if (grid.cursor) grid.speak()
      }
    }
    app.changed = patch => this.onChange(patch)
  }

  /** Pins that were not tracked have gaps; a host that has the model can close them. */
  private followPins() {
    const { app, options } = this
    const missing = app.readings.map((reading, r): [number, number[]] => {
      const own = app.state.pins.filter(([home]) => home == app.home(reading))
      return [r, own.flatMap(([, ...ids]) => ids).filter(id => !reading.trackIds.includes(id))]
    })
    if (missing.some(([, ids]) => ids.length)) options.follow?.(missing.filter(([, ids]) => ids.length))
  }

  /** A column has come while the model writes. */
  append(part: Reading) {
    this.app.append(part)
    const [layer, column] = this.app.state.cell
    if (column == this.app.columnCount - 1)
      for (const grid of this.grids) grid.reveal(this.rowOf(layer!), column)
  }

  close() {
    // only what waits to be saved: the address may be another page's by now
    if (this.savingAddress) this.saveAddress()
    this.app.changed = () => {}
    this.closed.abort()
    this.time.stop()
    this.box.remove()
  }

  private get grid(): Grid {
    return this.grids[this.active] ?? this.grids[0]!
  }
  /** The cell that counts, as layer and column: the chosen one, else the last row's last. */
  private get place(): [layer: number, column: number] {
    const { state, columnCount, layers } = this.app
    const [layer, column] = state.cell
    return layer == null ? [layers.length - 1, columnCount - 1] : [layer, column!]
  }
  /** The row of a layer in the grid, -1 where it is not shown. */
  private rowOf(layer: number): number {
    return this.app.shown.indexOf(layer)
  }

  /** Light or dark as asked, else as the system wishes. */
  private applyTheme() {
    const { theme } = this.options
    const systemIsDark = matchMedia("(prefers-color-scheme: dark)").matches
    this.app.dark = theme == "dark" || (theme != "light" && systemIsDark)
    this.box.dataset.theme = this.app.dark ? "dark" : "light"
    this.refreshSheets()
  }

  private buildGrids() {
    const { app } = this
    this.grids = sheetIndices(app).map((r, n) => this.makeGrid(r, n))
    this.gridBox.classList.toggle("many", this.grids.length > 1)
    this.gridBox.replaceChildren(
      ...this.grids.map((grid, n) =>
        h(
          "figure",
          app.several &&
            h("figcaption", !app.isDiff && h("b.letter", letter(app.panes[n]!)), grid.sheet.name),
          h("div.pane", grid.scroller),
        ),
      ),
    )
    this.resizeCells()
    this.refreshSheets()
  }

  private makeGrid(r: number, n: number): Grid {
    const { app } = this
    const hooks = {
      hover: (row: number, column: number) => {
        this.active = n
        this.hover(row, column)
      },
      pick: (row: number, column: number) => {
        this.active = n
        this.go(row < 0 ? this.place[0] : app.shown[row]!, column)
      },
      scrolled: () => this.onScroll(grid),
      zoom: (factor: number) => this.zoom(factor),
    }
    const grid = new Grid(makeSheet(app, r), hooks, `ll-cell${n}`)
    grid.scroller.onfocus = () => {
      this.active = n
      if (!app.state.cell.length) this.go(app.shown[0]!, grid.columnsInView[0])
    }
    return grid
  }

  /** Grids side by side scroll together. */
  private onScroll(source: Grid) {
    for (const { scroller } of this.grids) {
      if (scroller == source.scroller) continue
      scroller.scrollLeft = source.scroller.scrollLeft
      scroller.scrollTop = source.scroller.scrollTop
    }
    this.overview.draw(source)
    this.drawPrompt()
  }

  /** Cell sizes that suit the reading, unless a person chose them. */
  private resizeCells() {
    const { state, total, shown } = this.app
    const several = this.grids.length > 1
    const room = (this.grids[0]!.scroller.clientWidth || 900) - ROW_HEADER - 2
    const width = state.w || clamp(Math.floor(room / total), several ? 52 : 64, WIDEST)
    const height = state.h || (shown.length <= 16 ? 28 : 24)
    const stacked = several && this.gridBox.clientWidth < 980
    const limit = this.options.height ?? innerHeight * (stacked ? 0.42 : 0.64)
    for (const grid of this.grids) grid.resize(width, height, limit)
  }

  /** The cells have changed, not their places. */
  private refreshSheets() {
    const indices = sheetIndices(this.app)
    this.grids.forEach((grid, n) => {
      grid.sheet = makeSheet(this.app, indices[n]!)
      grid.refresh()
    })
    this.overview.stale = true
    this.redraw()
  }

  private onChange(patch: Partial<State>) {
    const touches = (...keys: (keyof State)[]) => keys.some(key => key in patch)
    const onlyMoves = touches("cell") && Object.keys(patch).length == 1
    this.prompt.refresh()
    if (touches("pins")) this.followPins()
    if (touches("view", "a", "b")) this.buildGrids()
    else if (!onlyMoves) this.refreshSheets()
    if (touches("w", "from", "to", "step", "hide", "upto") || this.columnsDrawn != this.app.columnCount)
      this.resizeCells()
    this.columnsDrawn = this.app.columnCount
    this.redraw()
    clearTimeout(this.savingAddress)
    this.savingAddress = setTimeout(() => this.saveAddress(), 200)
  }

  private saveAddress() {
    clearTimeout(this.savingAddress)
    this.savingAddress = undefined
    if (this.options.hash) history.replaceState(null, "", "#" + this.app.hash)
  }

  private draw() {
    const { app } = this
    const [layer, column] = app.state.cell
    const row = layer == null ? -1 : this.rowOf(layer)
    for (const grid of this.grids) {
      grid.cursor = row < 0 ? undefined : [row, column!]
      grid.draw()
    }
    this.tools.draw()
    this.time.draw()
    this.drawPrompt()
    this.overview.draw(this.grids[0]!)
    this.redrawPanel()
  }

  private drawPrompt() {
    this.prompt.draw(this.grids[0]!.columnsInView)
    this.markPrompt()
  }
  private markPrompt() {
    this.prompt.mark(this.hovered?.[1] ?? this.app.state.cell[1])
  }

  /** The pointer is over a cell of the grid (or over none: -1). */
  private hover(row: number, column: number) {
    this.hovered = row < 0 ? undefined : [row, column]
    for (const grid of this.grids) {
      grid.hovered = this.hovered
      grid.draw()
    }
    this.markPrompt()
    this.redrawPanel()
  }

  /** Choose a cell and have it in view. */
  private go(layer: number, column: number, centre = false) {
    const { app } = this
    const row = this.rowOf(layer)
    app.set({ cell: [layer, column] })
    for (const grid of this.grids) {
      grid.reveal(row, column, centre)
      grid.cursor = [row, column]
      grid.speak()
    }
    this.live.textContent = sentence(app, layer, column)
  }

  /** Back to the grid, from wherever the focus is. */
  private leave() {
    this.grid.scroller.focus({ preventScroll: true })
  }

  /** Larger or smaller cells, around the middle of the view. */
  private zoom(factor: number) {
    const { scroller, cellWidth, cellHeight, width, height } = this.grid
    const column = (scroller.scrollLeft + width / 2) / cellWidth
    const row = (scroller.scrollTop + height / 2) / cellHeight
    const resized = (size: number, largest: number) => {
      const next = Math.round(size * factor)
      return clamp(factor > 1 ? Math.max(size + 1, next) : Math.min(size - 1, next), 2, largest)
    }
    this.app.set({ w: resized(cellWidth, ZOOM.width), h: resized(cellHeight, ZOOM.height) })
    for (const grid of this.grids) {
      grid.scroller.scrollLeft = column * grid.cellWidth - grid.width / 2
      grid.scroller.scrollTop = row * grid.cellHeight - grid.height / 2
    }
  }
  /** All cells in view, or (a second time) the usual sizes again. */
  private fit() {
    const { app, grid } = this
    const w = clamp(Math.floor(grid.width / app.columnCount), 2, WIDEST)
    const h = clamp(Math.floor((innerHeight * 0.5) / app.shown.length), 3, 28)
    app.set(grid.cellWidth == w && grid.cellHeight == h ? { w: 0, h: 0 } : { w, h })
  }

  /** Columns in view, or all where they are few. */
  private part(limit = TABLE_COLUMNS): Part {
    const { columnCount } = this.app
    const [first, stop] = columnCount <= limit ? [0, columnCount] : this.grids[0]!.columnsInView
    return { first, stop: Math.min(stop, first + limit) }
  }

  private showTable() {
    this.tools.showTable(tables(this.app, this.part(), TABLE_COLUMNS))
  }

  private async copy(what: "text" | "python" | "csv" | "link") {
    const { app } = this
    const text = {
      text: () => asText(app, ...this.place),
      python: () => asPython(app, ...this.place),
      csv: () => asCSV(app, this.part(COPY_COLUMNS)),
      link: () => location.href,
    }[what]()
    const done = await toClipboard(text, this.box)
    this.say(done ? `Copied ${text.length} characters` : "Copying is not allowed here")
  }

  private async save(what: "png" | "svg" | "csv") {
    const name = this.app.readingA.manifest.label.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40)
    const data = await this.saved(what).catch(() => null)
    if (data) download(`${name}.${what}`, data)
    this.say(data ? `Saved ${name}.${what}` : "Not saved: show fewer positions")
  }
  private async saved(what: "png" | "svg" | "csv"): Promise<Blob | null> {
    const { app } = this
    if (what == "csv") {
      const readings = app.panes.map(r => app.readings[r]!)
      await Promise.all(readings.flatMap(reading => range(reading.T).map(t => reading.load(t))))
      return new Blob([asCSV(app, { first: 0, stop: app.columnCount })], { type: "text/csv" })
    }
    const picture = figure(app, this.part(), this.grid.cellWidth)
    return what == "svg" ? new Blob([picture.outerHTML], { type: "image/svg+xml" }) : png(picture)
  }

  /** Paper gets the part in view as tables of eight positions, and the charts as vectors. */
  private print() {
    const { app } = this
    const part = this.part()
    const { first, stop } = part
    const isPart = stop - first < app.columnCount
    this.paper.replaceChildren(
      ...app.panes.flatMap(r => {
        const { label, about } = app.readings[r]!.manifest
        return [h("h1", app.several && `${letter(r)} · `, label), ...about.text.map(line => h("p", line))]
      }),
      isPart ? `Columns ${first} – ${stop - 1} of ${app.columnCount}, those in view; save CSV for all.` : "",
      ...tables(app, part, PRINT_COLUMNS),
      h(
        "div.charts",
        [...layerPlots(app, ...this.place, 330), ...positionPlots(app, ...this.place, 330)].map(chart),
      ),
    )
  }

  /** Search: the next (or previous) place where a found token is; a number goes to that position. */
  private find(step: number) {
    const { app } = this
    const { q, a } = app.state
    const [layer, column] = this.place
    if (/^\d+$/.test(q)) {
      const found = app.columns[a]!.findIndex(t => app.readingA.positionNumber(t) == Number(q))
      if (found >= 0) this.go(layer, found, true)
      else this.say(`There is no position ${q}`)
      return
    }
    const found = findNext(app, layer, column, step)
    if (found) this.go(...found, true)
    else this.say(`“${clip(q, 40)}” was not recorded`)
  }

  private onKey(event: KeyboardEvent) {
    const { grid } = this
    const source = event.target as HTMLElement
    if (event.altKey || source.closest("input,select,textarea,dialog")) return
    const inGrid = source == grid.scroller
    const [layer, column] = this.place
    const to = inGrid && destination(event, grid, [Math.max(0, this.rowOf(layer)), column])
    if (to) {
      event.preventDefault()
      // the pointer is somewhere else: the keys count now
      this.hover(-1, -1)
      this.go(this.app.shown[to[0]]!, to[1])
      return
    }
    if (event.key == "Escape") return this.leave()
    if (event.ctrlKey || event.metaKey) return
    if (event.key == "Enter" && inGrid) {
      event.preventDefault()
      this.hover(-1, -1)
      this.go(layer, column)
      this.inspector.element.scrollIntoView({ block: "nearest" })
      requestAnimationFrame(() => this.inspector.focus())
      return
    }
    const act = this.shortcuts[event.key]
    if (!act) return
    event.preventDefault()
    act()
  }

  private shortcuts: Record<string, () => void> = {
    p: () => this.pinHere(({ reading, l, t }) => reading.topId(l, t)),
    f: () => this.pinHere(({ reading, t }) => reading.finalId(t)),
    P: () => this.pinPosition(),
    c: () => void this.copy("text"),
    C: () => void this.copy("python"),
    "/": () => this.tools.search.focus(),
    "?": () => this.tools.help.showModal(),
    t: () => this.showTable(),
    n: () => this.find(1),
    N: () => this.find(-1),
    m: () => this.app.set({ color: after(Object.keys(this.app.modes), this.app.state.color) }),
    v: () => {
      if (this.app.several) this.app.set({ view: after(VIEWS, this.app.state.view) })
    },
    "+": () => this.zoom(1.25),
    "=": () => this.zoom(1.25),
    "-": () => this.zoom(0.8),
    "0": () => this.fit(),
  }

  private pinHere(idOf: (cell: ReturnType<App["cells"]>[number]) => number) {
    const [cell] = this.app.cells(...this.place)
    if (cell) this.app.pin(cell.reading, idOf(cell))
  }
  private pinPosition() {
    const { pos } = this.app.state
    const [, column] = this.place
    this.app.set({ pos: pos.includes(column) ? pos.filter(other => other != column) : [...pos, column] })
  }

  /** Say something once, to eyes and ears. */
  private say(text: string) {
    const { toast } = this
    toast.hidden = false
    toast.textContent = text
    clearTimeout(this.hidingToast)
    this.hidingToast = setTimeout(() => (toast.hidden = true), 4000)
  }

  /** Inflate the remaining tiles while nothing else happens, for the overview and the search. */
  private async loadRest() {
    const idle = window.requestIdleCallback ?? setTimeout
    for (const reading of this.app.readings) {
      for (let t = 0; t < reading.T && !this.closed.signal.aborted; t += reading.manifest.tile) {
        await reading.load(t)
        await new Promise(done => idle(done))
      }
    }
  }
}

/** The one that follows in a list, after the last the first. */
const after = (list: string[], now: string) => list[(list.indexOf(now) + 1) % list.length]!
