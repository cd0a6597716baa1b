/* The card of a cell: top k with bars, the statistics, the next and the followed tokens. */
import type { App, Cell } from "./app"
import { LINES } from "./colour"
import { h, range } from "./dom"
import type { TokenValue } from "./format"
import { clip, count, hex, number, prob, repair, visible } from "./text"
import { settled } from "./values"

interface Hooks {
  copy(what: "text" | "python"): void
  close(): void
}

export class Popup {
  readonly element = h("div.pop", { hidden: true })
  /** kept open, with buttons, until it is closed */
  locked = false
  private shownFor = ""

  constructor(
    private app: App,
    private hooks: Hooks,
  ) {
    this.element.onkeydown = event => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key]
      if (!step) return
      event.preventDefault()
      const all = this.buttons
      const next = (all.indexOf(event.target as HTMLButtonElement) + step + all.length) % all.length
      all[next]?.focus()
    }
  }

  private get buttons(): HTMLButtonElement[] {
    return [...this.element.querySelectorAll("button")]
  }

  hide() {
    this.element.hidden = true
    this.locked = false
    this.shownFor = ""
  }

  /** Show the card of a cell beside its place on the screen. */
  show(layer: number, column: number, near: DOMRect, lock: boolean) {
    const { app, element } = this
    const key = JSON.stringify([layer, column, lock, app.state])
    this.locked = lock
    if (key != this.shownFor) {
      // a locked card keeps the button that has the focus
      const focused = this.buttons.indexOf(document.activeElement as HTMLButtonElement)
      this.shownFor = key
      element.classList.toggle("lock", lock)
      element.replaceChildren(
        h(
          "div.blocks",
          app.panes.map(r => this.section(r, layer, column)),
        ),
        lock ? this.actions() : h("div.hint", "click to keep open · P to pin"),
      )
      if (focused >= 0) this.buttons[focused]?.focus()
    }
    element.hidden = false
    this.placeBeside(near)
  }

  /** Beside the cell, so that its row and column stay in sight. */
  private placeBeside(near: DOMRect) {
    const { style, offsetWidth, offsetHeight } = this.element
    const right = near.right + 10
    const left = near.left - 10 - offsetWidth
    const x =
      right + offsetWidth < innerWidth ? right : left > 0 ? left : Math.max(4, innerWidth - offsetWidth - 4)
    style.left = `${x}px`
    style.top = `${Math.max(4, Math.min(near.top - 12, innerHeight - offsetHeight - 6))}px`
  }

  private actions() {
    const { copy, close } = this.hooks
    return h(
      "div.acts",
      h("button", { onclick: () => copy("text") }, "Copy text"),
      h("button", { onclick: () => copy("python") }, "Copy Python"),
      h("button", { onclick: close }, "Close"),
    )
  }

  private section(r: number, layer: number, column: number) {
    const { app } = this
    const cell = app.cell(r, layer, column)
    return h(
      "section",
      app.several && h("b.who", app.readings[r]!.manifest.label),
      !cell ? "no such cell" : !cell.reading.ready(cell.t) ? "…" : this.content(cell),
    )
  }

  private content(cell: Cell) {
    const { reading, l, t } = cell
    return [
      h(
        "div.at",
        h("b", "layer " + reading.layer(l)),
        l == reading.L - 1 && " (the model’s own output)",
        ` · position ${reading.positionNumber(t)} · after `,
        token(cell, reading.ids[t]!, reading.pieces[t]),
      ),
      h(
        "table.top",
        range(reading.K).map(k => reading.topId(l, t, k) >= 0 && this.topRow(cell, k)),
      ),
      h("table.stats", this.statistics(cell)),
    ]
  }

  private topRow(cell: Cell, k: number) {
    const { reading, l, t } = cell
    const id = reading.topId(l, t, k)
    const logprob = reading.topLogprob(l, t, k)
    const bar = 100 * Math.exp(logprob - reading.topLogprob(l, t))
    return h(
      id == reading.finalId(t) ? "tr.final" : "tr",
      h("th", reading.topRank(l, t, k)),
      h("td.w", h("i.bar", { style: `width:${bar}%` }), token(cell, id)),
      h("td", { title: "id " + id }, prob(logprob)),
      h("td.lp", number(logprob)),
      this.locked && h("td", this.pinButton(cell, id)),
    )
  }

  private pinButton({ reading }: Cell, id: number) {
    const { app } = this
    const pinned = app.pinOf(reading, id) >= 0
    return h(
      "button.pin",
      {
        "aria-pressed": String(pinned),
        "aria-label": "Pin " + visible(clip(reading.piece(id), 30)),
        title: "Shift: add to the last group",
        onclick: (event: MouseEvent) => app.pin(reading, id, event.shiftKey),
      },
      pinned ? "pinned" : "pin",
    )
  }

  /** The cell's own statistics, then the tokens that are followed in every cell. */
  private statistics(cell: Cell) {
    const { app } = this
    const { reading, l, t } = cell
    const next = reading.nextIds[t]!
    const cellModes = Object.values(app.modes).filter(mode => mode.statistic)
    return [
      cellModes.map(mode => {
        const value = mode.value(reading, l, t)
        const bits = mode.statistic!.unit == "nats" ? ` (${number(value / Math.LN2)} bits)` : ""
        return line(mode.statistic!.label, mode.format(value) + bits)
      }),
      next < 0
        ? line("next token", "none follows")
        : line("next token", token(cell, next), reading.token(l, t, next), reading.K),
      line("settled", "from layer " + reading.layer(settled(reading, t))),
      reading.trackIds.map(
        id =>
          app.pinOf(reading, id) < 0 && line("tracked", token(cell, id), reading.token(l, t, id), reading.K),
      ),
      app.state.pins.map((pin, i) => {
        const name = h("bdi", dot(i), clip(app.pinName(pin), 24))
        return line("pinned", name, app.pinValue(cell, pin), reading.K)
      }),
    ]
  }
}

/** A line of the card; with a token's value, its rank (or that it is beyond the top K) and probability. */
function line(name: string, what: string | Node, value?: TokenValue, K?: number) {
  return h(
    "tr",
    h("th", name),
    h("td", { colspan: value ? 1 : 3 }, what),
    value && [
      h("td", value.rank == Infinity ? "> " + K : "#" + count(value.rank)),
      h("td", prob(value.logprob)),
    ],
  )
}

export const dot = (i: number) => h("i.dot", { style: "background:" + LINES[i % LINES.length] })

/** A token on the page: isolated direction, visible whitespace, bytes of a fragment with its glyph. */
function token({ reading, t }: Cell, id: number, piece?: string) {
  const text = piece ?? reading.piece(id)
  // a piece of the prompt is shown as it was read, without its bytes
  const bytes = piece == null ? reading.bytes.get(id) : undefined
  const before = range(4, t - 3).flatMap(i => reading.bytes.get(reading.ids[i]!) ?? [])
  const glyph = bytes && repair(before, bytes)
  return h(
    "span",
    { title: text.length > 60 && `${text.length} characters` },
    h(reading.special.has(id) ? "bdi.special" : "bdi", visible(clip(text, 60))),
    bytes && h("small", ` bytes ${hex(bytes)}`, glyph && ` → ${glyph}`),
  )
}
