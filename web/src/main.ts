/* mount(element, source, options): the page, the same in a file, a notebook and the server. */
import { App, type State } from "./app"
import { chart } from "./chart"
import { clamp, framed, h, range } from "./dom"
import { embedded, open, type Source } from "./format"
import { Grid, ROWHEAD, type Place } from "./grid"
import { Overview } from "./overview"
import { Panel, plots } from "./panel"
import { Popup } from "./popup"
import { asCSV, asPython, download, figure, png, tables, type Part } from "./save"
import "./style.css"
import { clip, visible } from "./text"
import { Tools } from "./tools"
import { final } from "./values"

export interface Options {
  /** "auto" follows the system; hosts that know better say so */
  theme?: "auto" | "light" | "dark"
  /** keep the state in the address bar */
  hash?: boolean
  /** pixels the grid may be high */
  height?: number
  /** a state to begin with, as in the address */
  state?: string
}

/** Show a source in an element. Returns the way to take it away again. */
export async function mount(
  element: HTMLElement,
  source: Source,
  options: Options = {},
): Promise<() => void> {
  const box = h("div.ll")
  element.replaceChildren(box)
  try {
    const o = { ...source.manifest.options, ...options } as Options,
      { title, frame } = source.manifest
    const page = new Page(
      box,
      title,
      new App(await open(source), frame, (o.hash && location.hash) || o.state || ""),
      o,
    )
    return () => page.close()
  } catch (e) {
    box.append(h("p.problem", { role: "alert" }, (e as Error).message))
    return () => box.remove()
  }
}

/** The page of a file: data in the document. */
export const file = (element: HTMLElement, options: Options = {}) =>
  mount(element, embedded(document, JSON.parse(document.querySelector("[data-ll=manifest]")!.textContent!)), {
    hash: true,
    ...options,
  })

class Page {
  private grids: Grid[] = []
  private gridBox = h("div.grids")
  private prompt = h("div.prompt", { "aria-label": "Prompt", role: "group" })
  private live = h("div.sr", { "aria-live": "polite" })
  private toast = h("div.toast", { role: "status", hidden: true })
  private print = h("div.print")
  private tools: Tools
  private popup: Popup
  private panel: Panel
  private overview: Overview
  private redraw = framed(() => this.draw())
  private panelSoon = framed(() => this.panel.draw(...this.focus()))
  private hovered?: Place
  private active = 0
  private off = new AbortController()
  private stripe = ""
  private saving?: ReturnType<typeof setTimeout>
  private told?: ReturnType<typeof setTimeout>

  constructor(
    private box: HTMLElement,
    title: string,
    private app: App,
    private o: Options,
  ) {
    const on = (target: EventTarget, type: string, f: (e: any) => void) =>
      target.addEventListener(type, f, { signal: this.off.signal })
    const copy = (what: string) => this.copy(what)
    this.tools = new Tools(app, title, {
      zoom: f => this.zoom(f),
      fit: () => this.fit(),
      copy,
      save: what => this.save(what),
      table: () => this.tools.showTable(tables(app, this.part(), 60)),
      find: step => this.find(step),
    })
    this.popup = new Popup(app, copy, () => this.unlock())
    this.panel = new Panel(app, (d, c) => this.go(d, c))
    this.overview = new Overview(app, c => this.each(g => (g.sc.scrollLeft = c * g.w - g.width / 2)))
    const { tools } = this
    box.append(
      tools.head,
      this.prompt,
      tools.bar,
      this.gridBox,
      this.overview.el,
      this.panel.el,
      this.popup.el,
      this.live,
      this.toast,
      tools.help,
      tools.tableBox,
      this.print,
    )
    on(matchMedia("(prefers-color-scheme: dark)"), "change", () => this.theme())
    // a host that changes its theme says so: "light", "dark" or "auto"
    on(window, "message", e => {
      if (/^(light|dark|auto)$/.test(e.data)) ((o.theme = e.data), this.theme())
    })
    on(window, "beforeprint", () => this.printable())
    on(window, "resize", () => {
      this.resize()
      this.redraw()
    })
    if (o.hash) on(window, "hashchange", () => app.set({ ...app.start, ...app.parse(location.hash) }))
    on(o.hash ? document : box, "keydown", e => this.key(e))
    on(document, "pointerdown", e => {
      if (this.popup.locked && ![this.popup.el, this.gridBox, this.panel.el].some(x => x.contains(e.target)))
        this.popup.hide()
    })
    app.Rs.forEach(
      R =>
        (R.changed = problem => {
          if (problem) this.say(problem)
          app.arrived()
          this.sheets()
          this.each(g => g.cursor && g.speak())
        }),
    )
    app.changed = patch => this.changed(patch)
    this.theme()
    this.build()
    this.idle()
    if (app.S.cell[0] != null) requestAnimationFrame(() => this.go(app.S.cell[0]!, app.S.cell[1]!, true))
  }

  close() {
    this.off.abort()
    this.box.remove()
  }
  private each(f: (g: Grid) => void) {
    this.grids.forEach(f)
  }
  private get grid() {
    return this.grids[this.active] ?? this.grids[0]!
  }

  /** Light or dark as asked, else as the system wishes. */
  private theme() {
    const { theme } = this.o
    this.app.dark =
      theme == "dark" || (theme != "light" && matchMedia("(prefers-color-scheme: dark)").matches)
    this.box.dataset.theme = this.app.dark ? "dark" : "light"
    this.sheets()
  }

  private build() {
    const { app } = this,
      list = app.diff ? [app.S.a] : app.panes
    this.grids = list.map((r, n) => {
      const g: Grid = new Grid(
        app.sheet(r),
        {
          hover: (i, c) => {
            this.active = n
            this.point(i, c)
          },
          pick: (i, c) => {
            this.active = n
            this.go(i < 0 ? this.focus()[0] : app.shown[i]!, c)
            if (i >= 0) this.lock()
          },
          scrolled: () => {
            this.each(o => {
              if (o != g) ((o.sc.scrollLeft = g.sc.scrollLeft), (o.sc.scrollTop = g.sc.scrollTop))
            })
            this.overview.draw(g)
            this.strip()
            if (!this.popup.locked) this.popup.hide()
          },
          zoom: f => this.zoom(f),
        },
        "ll-cell" + n,
      )
      g.sc.onfocus = () => {
        this.active = n
        if (app.S.cell[0] == null) this.go(app.shown[0]!, g.seen[0])
      }
      return g
    })
    this.gridBox.classList.toggle("many", list.length > 1)
    this.gridBox.replaceChildren(
      ...this.grids.map(g => h("figure", app.Rs[1] && h("figcaption", g.sheet.name), h("div.pane", g.sc))),
    )
    this.resize()
    this.sheets()
  }

  /** Cell sizes that suit the reading, unless a person chose them. */
  private resize() {
    const { app } = this,
      { S, ncol, shown } = app,
      room = (this.grids[0]!.sc.clientWidth || 900) - ROWHEAD - 2
    this.each(g =>
      g.size(
        S.w || clamp(Math.floor(room / ncol), this.grids[1] ? 52 : 72, 170),
        S.h || (shown.length <= 16 ? 28 : 24),
        this.o.height ?? innerHeight * (this.grids[1] && this.gridBox.clientWidth < 980 ? 0.42 : 0.64),
      ),
    )
  }

  /** The cells have changed, not their places. */
  private sheets() {
    const { app } = this,
      list = app.diff ? [app.S.a] : app.panes
    this.each(g => {
      g.sheet = app.sheet(list[this.grids.indexOf(g)]!)
      g.fresh()
    })
    this.overview.stale = true
    this.redraw()
  }

  private changed(patch: Partial<State>) {
    const has = (...keys: string[]) => keys.some(k => k in patch),
      { app } = this
    this.stripe = ""
    if (has("view", "a", "b")) this.build()
    else if (!(has("cell") && !has("q"))) this.sheets()
    if (has("w", "from", "to", "step")) this.resize()
    this.redraw()
    clearTimeout(this.saving)
    if (this.o.hash) this.saving = setTimeout(() => history.replaceState(null, "", "#" + app.hash), 200)
  }

  /** The cell that counts: the chosen one, else the last row's last. */
  private focus(): Place {
    const { S, ncol, labels } = this.app
    return S.cell[0] == null ? [labels.length - 1, ncol - 1] : (S.cell as Place)
  }

  private draw() {
    const { app, popup } = this,
      [d, c] = app.S.cell,
      i = app.shown.indexOf(d!)
    this.each(g => {
      g.cursor = i < 0 ? undefined : [i, c!]
      g.draw()
    })
    this.tools.draw()
    this.strip()
    this.overview.draw(this.grids[0]!)
    this.panelSoon()
    if (popup.locked && i >= 0) popup.show(d!, c!, this.grid.rect(i, c!), true)
  }

  /** The pointer is over a cell of the grid (or over none: -1). */
  private point(i: number, c: number) {
    const { popup } = this
    this.hovered = i < 0 ? undefined : [i, c]
    this.each(g => {
      g.hovered = this.hovered
      g.draw()
    })
    this.mark()
    if (popup.locked) return
    if (i < 0) popup.hide()
    else popup.show(this.app.shown[i]!, c, this.grid.rect(i, c), false)
  }

  /** Choose a cell (depth, column) and have it in view. */
  private go(d: number, c: number, centre = false) {
    const { app, popup } = this,
      i = app.shown.indexOf(d)
    app.set({ cell: [d, c] })
    this.each(g => {
      g.reveal(i, c, centre)
      g.cursor = [i, c]
      g.speak()
    })
    this.live.textContent = app.sentence(d, c)
    if (!popup.locked) popup.hide()
  }

  /** Hold the card of the chosen cell. */
  private lock() {
    const [d, c] = this.focus()
    this.popup.show(d, c, this.grid.rect(this.app.shown.indexOf(d), c), true)
    this.popup.el.querySelector("button")?.focus()
  }
  private unlock() {
    this.popup.hide()
    this.grid.sc.focus({ preventScroll: true })
  }

  private zoom(f: number) {
    const { sc, w, h: hh, width, height } = this.grid,
      x = (sc.scrollLeft + width / 2) / w,
      y = (sc.scrollTop + height / 2) / hh
    const step = (v: number, most: number) =>
      clamp(f > 1 ? Math.max(v + 1, Math.round(v * f)) : Math.min(v - 1, Math.round(v * f)), 2, most)
    this.app.set({ w: step(w, 240), h: step(hh, 64) })
    this.each(g => {
      g.sc.scrollLeft = x * g.w - g.width / 2
      g.sc.scrollTop = y * g.h - g.height / 2
    })
  }
  private fit() {
    const { app, grid } = this,
      w = clamp(Math.floor(grid.width / app.ncol), 2, 170),
      hh = clamp(Math.floor((innerHeight * 0.5) / app.shown.length), 3, 28)
    app.set(grid.w == w && grid.h == hh ? { w: 0, h: 0 } : { w, h: hh })
  }

  /** The prompt as text; of a long one, the part around the columns in view. */
  private strip() {
    const { app } = this,
      { A, S, ncol } = app,
      { head } = A,
      [s0, s1] = this.grids[0]!.seen,
      lo = ncol <= 500 ? 0 : clamp(Math.round((s0 + s1) / 200 - 2) * 100, 0, ncol),
      hi = Math.min(ncol, lo + 500)
    if (this.stripe != (this.stripe = [S.a, lo].join()))
      this.prompt.replaceChildren(
        lo ? "… " : "",
        ...range(hi - lo, lo).flatMap(c => {
          const t = app.cols[S.a]![c]!,
            piece = head.pieces[t]!,
            id = head.ids[t]!,
            role = head.roles.find(x => x[0] == t)
          if (t < 0) return []
          // plain text reads as text; anything else is made visible
          const text = /^ ?[\p{L}\p{N}\p{P}\p{S}]{1,40}$/u.test(piece)
            ? piece
            : visible(clip(piece, 40)).replace(/↵/g, "↵\n")
          return [
            role ? h("span.role", role[2]) : "",
            h(
              "span",
              {
                class:
                  "tk" +
                  (A.special.has(id) ? " special" : "") +
                  (app.places[S.a]!.has(t) ? " found" : "") +
                  (S.pos.includes(c) ? " pinned" : ""),
                "data-c": c,
                onclick: () => this.go(this.focus()[0], c, true),
              },
              h("bdi", text),
            ),
          ]
        }),
        hi < ncol ? " …" : "",
      )
    this.mark()
  }
  /** Mark the current position in the prompt. */
  private mark() {
    const { prompt } = this,
      e = prompt.querySelector<HTMLElement>(`[data-c="${(this.hovered ?? this.app.S.cell)[1]}"]`),
      on = prompt.querySelector(".on")
    if (on == e) return
    on?.classList.remove("on")
    e?.classList.add("on")
    if (e) prompt.scrollTop = clamp(prompt.scrollTop, e.offsetTop - prompt.clientHeight + 24, e.offsetTop - 4)
  }

  /** Columns in view, or all where they are few. */
  private part(limit = 60): Part {
    const { ncol } = this.app,
      [c0, c1] = ncol <= limit ? [0, ncol] : this.grids[0]!.seen
    return { c0, c1: Math.min(c1, c0 + limit) }
  }

  private async copy(what: string) {
    const { app } = this,
      at = this.focus(),
      text =
        what == "csv"
          ? asCSV(app, this.part(200))
          : what == "python"
            ? asPython(app, ...at)
            : what == "link"
              ? location.href
              : app.asText(...at)
    try {
      await navigator.clipboard.writeText(text)
    } catch {
      // no clipboard without a secure address or a permission: the old way
      const area = h("textarea.sr", { value: text })
      this.box.append(area)
      area.select()
      const done = document.execCommand("copy")
      area.remove()
      if (!done) return this.say("Copying is not allowed here")
    }
    this.say(`Copied ${text.length} characters`)
  }

  private async save(what: string) {
    const { app } = this,
      name = app.A.man.label.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) + "." + what
    let data: Blob | null
    try {
      if (what == "csv") {
        await Promise.all(app.panes.flatMap(r => range(app.Rs[r]!.T).map(t => app.Rs[r]!.load(t))))
        data = new Blob([asCSV(app, { c0: 0, c1: app.ncol })], { type: "text/csv" })
      } else {
        const f = figure(app, this.part(), this.grid.w)
        data = what == "svg" ? new Blob([f.outerHTML], { type: "image/svg+xml" }) : await png(f)
      }
    } catch {
      data = null
    }
    if (data) download(name, data)
    this.say(data ? "Saved " + name : "Not saved: show fewer positions")
  }

  /** Paper gets the part in view as tables of eight positions, and the charts as vectors. */
  private printable() {
    const { app } = this,
      part = this.part(),
      { c0, c1 } = part
    this.print.replaceChildren(
      ...app.panes.flatMap(r => [
        h("h1", app.Rs[r]!.man.label),
        ...app.Rs[r]!.man.about.text.map(s => h("p", s)),
      ]),
      c1 - c0 < app.ncol ? `Columns ${c0} – ${c1 - 1} of ${app.ncol}, those in view; save CSV for all.` : "",
      ...tables(app, part, 8),
      h("div.charts", plots(app, ...this.focus(), 330).map(chart)),
    )
  }

  /** Search: the next (or previous) place where a found token is; a number goes to that position. */
  private find(step: number) {
    const { app } = this,
      { S, panes, shown } = app,
      [d, c] = this.focus(),
      { q } = S
    if (/^\d+$/.test(q)) {
      const x = app.cols[S.a]!.findIndex(t => app.A.at(t) == +q)
      return x < 0 ? this.say(`There is no position ${q}`) : this.go(d, x, true)
    }
    const deep = [...shown].reverse()
    for (let n = 1; n <= app.ncol; n++) {
      const x = (c + n * step + app.ncol) % app.ncol
      for (const r of panes) {
        const found = app.found[r]!,
          has = (id: number) => found.has(id)
        const row = app.places[r]!.has(app.cols[r]![x]!)
          ? d
          : deep.find(y => {
              const p = app.here(r, y, x)
              return p && p.R.slot(p.l, p.t, has) >= 0
            })
        if (row != null) return this.go(row, x, true)
      }
    }
    this.say(`“${clip(q, 40)}” was not recorded`)
  }

  private key(e: KeyboardEvent) {
    const { app, grid: g, popup } = this,
      { S, shown, ncol } = app,
      from = e.target as HTMLElement,
      { key } = e,
      last = shown.length - 1
    if (e.altKey || from.closest("input,select,textarea,dialog")) return
    const ctrl = e.ctrlKey || e.metaKey,
      inGrid = from == g.sc,
      [d, c] = this.focus(),
      i = Math.max(0, shown.indexOf(d)),
      page = Math.max(1, Math.floor(g.height / g.h) - 2),
      side = Math.max(1, Math.floor(g.width / g.w) - 1)
    const jump = (sign: number): Place => (e.shiftKey ? [i, c + sign * side] : [i + sign * page, c])
    const to: Place | undefined = !inGrid
      ? undefined
      : (
          {
            ArrowUp: [i - 1, c],
            ArrowDown: [i + 1, c],
            ArrowLeft: [i, c - 1],
            ArrowRight: [i, c + 1],
            Home: [ctrl ? 0 : i, 0],
            End: [ctrl ? last : i, ncol - 1],
            PageUp: jump(-1),
            PageDown: jump(1),
          } as Record<string, Place>
        )[key]
    if (to) {
      const y = clamp(to[0], 0, last),
        x = clamp(to[1], 0, ncol - 1)
      e.preventDefault()
      this.go(shown[y]!, x)
      return popup.show(shown[y]!, x, g.rect(y, x), popup.locked)
    }
    if (key == "Escape") return popup.locked ? this.unlock() : popup.hide()
    if (ctrl) return
    const [at] = app.heres(d, c),
      modes = Object.keys(app.modes),
      views = ["one", "side", "diff"]
    const act = (
      {
        Enter:
          inGrid &&
          (() => {
            this.go(d, c)
            this.lock()
          }),
        p: () => at && app.pin(at.R, at.R.top(at.l, at.t)),
        f: () => at && app.pin(at.R, final(at.R, at.t)),
        P: () => app.set({ pos: S.pos.includes(c) ? S.pos.filter(x => x != c) : [...S.pos, c] }),
        c: () => this.copy("text"),
        C: () => this.copy("python"),
        "/": () => this.tools.search.focus(),
        "?": () => this.tools.help.showModal(),
        t: () => this.tools.acts.table(),
        n: () => this.find(1),
        N: () => this.find(-1),
        m: () => app.set({ color: modes[(modes.indexOf(S.color) + 1) % modes.length]! }),
        v: () => app.Rs[1] && app.set({ view: views[(views.indexOf(S.view) + 1) % 3]! }),
        "+": () => this.zoom(1.25),
        "=": () => this.zoom(1.25),
        "-": () => this.zoom(0.8),
        "0": () => this.fit(),
      } as Record<string, (() => void) | false>
    )[key]
    if (act) (e.preventDefault(), act())
  }

  /** Say something once, to eyes and ears. */
  private say(text: string) {
    const { toast } = this
    toast.hidden = false
    toast.textContent = text
    clearTimeout(this.told)
    this.told = setTimeout(() => (toast.hidden = true), 4000)
  }

  /** Inflate the remaining tiles while nothing else happens, for the overview and the search. */
  private async idle() {
    for (const R of this.app.Rs)
      for (let t = 0; t < R.T && !this.off.signal.aborted; t += R.man.tile) {
        await R.load(t)
        await new Promise(done => (window.requestIdleCallback ?? setTimeout)(done))
      }
  }
}
