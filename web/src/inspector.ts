/* The inspector: what the cell under the cursor (or the pointer) says, and how its tokens came about.
 *
 * It is docked beside the grid and always open. One reading shows its top k and its statistics; several
 * share one table with a column each, and a difference has a column of differences as well. */
import type { App, Cell } from "./app"
import { LINES } from "./colour"
import { h, range } from "./dom"
import type { TokenValue } from "./format"
import { layerPlots } from "./panel"
import { components, type Attribution } from "./patches"
import { Slots } from "./slots"
import { clip, count, hex, letter, number, prob, repair, signed, visible } from "./text"
import { delta, probDelta, settled, type Mode, type Pin } from "./values"

/** What a host may offer for a token of a cell, besides pinning it. */
export interface TokenActions {
  /** append the token after this position, and read again */
  append?(cell: Cell, id: number): void
  /** who wrote it: filled in when the answer is there */
  attribute?(cell: Cell, id: number): Promise<ChildNode>
}

/** Top tokens of each reading where several are compared. */
const COMPARED = 5

export class Inspector {
  private card = h("div.card")
  private slots: Slots
  readonly element: HTMLElement
  private shownFor = ""
  /** the cells of the readings in view that are looked at */
  private place = ""
  /** what was asked last, and about which cell */
  private answer?: ChildNode
  private answered = ""

  constructor(
    private app: App,
    private actions: TokenActions,
    private go: (layer: number, column: number) => void,
    leave: () => void,
    say: (text: string) => void,
  ) {
    this.slots = new Slots(say, "Trajectories over layers")
    this.element = h("aside.inspector", { "aria-label": "Inspector" }, this.card, this.slots.element)
    this.element.onkeydown = event => {
      if (event.key == "Escape") return leave()
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key]
      const all = this.buttons
      const at = all.indexOf(event.target as HTMLButtonElement)
      if (!step || at < 0) return
      event.preventDefault()
      event.stopPropagation()
      all[(at + step + all.length) % all.length]?.focus()
    }
  }

  private get buttons(): HTMLButtonElement[] {
    return [...this.card.querySelectorAll("button")]
  }
  focus() {
    this.buttons[0]?.focus()
  }

  draw(layer: number, column: number) {
    const { app, card } = this
    const ready = app.cells(layer, column).map(({ reading, t }) => reading.ready(t))
    const key = JSON.stringify([layer, column, app.state, ready, app.columnCount])
    if (key == this.shownFor) return
    this.shownFor = key
    this.place = app
      .cells(layer, column)
      .map(({ reading, l, t }) => [app.readings.indexOf(reading), l, t])
      .join()
    // a redrawn card keeps the button that has the focus
    const focused = this.buttons.indexOf(document.activeElement as HTMLButtonElement)
    card.replaceChildren(...this.content(layer, column))
    if (focused >= 0) (this.buttons[focused] ?? this.buttons.at(-1))?.focus()
    this.slots.draw(layerPlots(app, layer, column, this.slots.width, this.go))
  }

  private content(layer: number, column: number): Node[] {
    const { app } = this
    const cells = app.panes.map(r => app.cell(r, layer, column))
    const found = cells.find(cell => cell)
    if (!found) return [h("p.at", "no such cell")]
    const waits = cells.some(cell => cell && !cell.reading.ready(cell.t))
    const heading = this.heading(cells, layer)
    if (waits) return [heading, h("p", "…")]
    if (cells.length > 1) return [heading, this.comparison(cells)]
    return [
      heading,
      h(
        "table.top",
        range(found.reading.K).map(
          k => found.reading.topId(found.l, found.t, k) >= 0 && this.topRow(found, k),
        ),
      ),
      this.shownAnswer ?? h("div"),
      h("table.stats", this.statistics([found])),
    ]
  }

  private heading(cells: (Cell | null)[], layer: number) {
    const { app } = this
    const last = layer == app.layers.length - 1
    return h(
      "div.at",
      h("b", "layer " + app.layers[layer]),
      last && " (the model’s own output)",
      app.panes.map((r, i) => {
        const cell = cells[i]
        return h(
          "div",
          app.several && h("b.letter", letter(r)),
          !cell
            ? " no such cell"
            : [
                ` position ${cell.reading.positionNumber(cell.t)} · after `,
                token(cell, cell.reading.ids[cell.t]!, cell.reading.pieces[cell.t]),
              ],
        )
      }),
    )
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
      h("td", { title: `id ${id} · ${number(logprob)} nats` }, prob(logprob)),
      h("td.do", this.pinButton(cell, id), this.more(cell, id)),
    )
  }

  private pinButton({ reading }: Cell, id: number) {
    const { app } = this
    const pinned = app.pinOf(reading, id)
    return h(
      "button.pin",
      {
        "aria-pressed": String(pinned >= 0),
        "aria-label": "Pin " + visible(clip(reading.piece(id), 30)),
        title: "pin: follow it in the charts (Shift: add to the last group)",
        style: pinned >= 0 ? `background:${LINES[pinned % LINES.length]}` : "",
        onclick: (event: MouseEvent) => app.pin(reading, id, event.shiftKey),
      },
      "●",
    )
  }

  /** What the host can do with a token. */
  private more(cell: Cell, id: number) {
    const { append, attribute } = this.actions
    const found = recorded(cell, id)
    const who = found ? async () => components(found) : attribute && (() => attribute(cell, id))
    const name = visible(clip(cell.reading.piece(id), 30))
    const button = (text: string, title: string, onclick: () => void) =>
      h("button.pin", { title, "aria-label": title, onclick }, text)
    return [
      append && button("+", `Append ${name} after this position, and read again`, () => append(cell, id)),
      who && button("?", `Who wrote ${name}?`, () => void this.ask(who)),
    ]
  }

  /** The answer, where the cell it is about is looked at. */
  private get shownAnswer(): ChildNode | undefined {
    return this.answered == this.place ? this.answer : undefined
  }

  private async ask(who: () => Promise<ChildNode>) {
    const { place } = this
    const show = (answer: ChildNode) => {
      this.shownAnswer?.remove()
      this.answer = answer
      this.answered = place
      if (this.shownAnswer) this.card.querySelector(".top")?.after(answer)
    }
    show(h("p", "…"))
    const answer = await who()
    // unless another cell was asked about since
    if (this.answered == place) show(answer)
  }

  /** One table for several readings: the tokens that any of them puts first, then the numbers. */
  private comparison(cells: (Cell | null)[]) {
    const { app } = this
    const { isDiff } = app
    const pins = new Map<string, { pin: Pin; best: number; cell: Cell }>()
    for (const cell of cells) {
      if (!cell) continue
      for (const k of range(Math.min(COMPARED, cell.reading.K))) {
        const id = cell.reading.topId(cell.l, cell.t, k)
        const best = cell.reading.topLogprob(cell.l, cell.t, k)
        const text = cell.reading.piece(id)
        if (id >= 0 && !(pins.get(text)?.best! >= best))
          pins.set(text, { pin: [app.home(cell.reading), id], best, cell })
      }
    }
    const rows = [...pins.values()]
      .sort((a, b) => b.best - a.best)
      .map(({ pin, cell }) => {
        const values = cells.map(other => (other ? app.pinValue(other, pin) : null))
        return h(
          "tr",
          h("th", token(cell, pin[1]!)),
          cells.map((other, i) => h("td", other && bounded(other, values[i]!))),
          isDiff && h("td.delta", tokenDelta(cells, values)),
          h("td.do", this.pinButton(cell, pin[1]!)),
        )
      })
    return h(
      "div.several",
      h(
        "table.stats",
        h(
          "tr.names",
          h("th", "probability"),
          app.panes.map(r => h("th", h("b.letter", { title: app.readings[r]!.manifest.label }, letter(r)))),
          isDiff && h("th", { title: "B minus A: percentage points, or the ratio of small ones" }, "Δ"),
          h("td"),
        ),
        rows,
        this.statistics(cells, new Set(pins.keys())),
      ),
    )
  }

  /** The cell's own statistics, then the tokens that are followed in every cell. */
  private statistics(cells: (Cell | null)[], above = new Set<string>()) {
    const { app } = this
    const found = cells.filter(cell => cell) as Cell[]
    const cellModes = Object.values(app.modes).filter(mode => mode.statistic)
    const alone = cells.length == 1
    const tracked = new Map(
      found.flatMap(({ reading }) =>
        reading.trackIds
          .filter(id => app.pinOf(reading, id) < 0)
          .map(id => [reading.piece(id), [app.home(reading), id]] as [string, Pin]),
      ),
    )
    const followed: [string, Node | string, Pin][] = [
      ...[...tracked].map(([piece, pin]): [string, string, Pin] => [
        "tracked",
        visible(clip(piece, 24)),
        pin,
      ]),
      ...app.state.pins.map((pin, i): [string, Node, Pin] => [
        "pinned",
        h("bdi", dot(i), clip(app.pinName(pin), 24)),
        pin,
      ]),
    ]
    const each = (name: string, text: (cell: Cell) => string | Node, change = "") =>
      h(
        "tr",
        h("th", name),
        cells.map(cell => h("td", { colspan: alone && 3 }, cell ? text(cell) : "–")),
        app.isDiff && h("td.delta", change),
      )
    const values = (mode: Mode) => cells.map(cell => (cell ? mode.value(cell.reading, cell.l, cell.t) : NaN))
    return [
      cellModes.map(mode =>
        each(
          mode.statistic!.label,
          ({ reading, l, t }) => {
            const value = mode.value(reading, l, t)
            const bits = alone && mode.statistic!.unit == "nats" ? ` (${number(value / Math.LN2)} bits)` : ""
            return (alone ? mode.format(value) : mode.short(value)) + bits
          },
          mode.scale == "yes or no" ? "" : delta(mode, values(mode)),
        ),
      ),
      this.nextLine(cells),
      each("settled from", ({ reading, t }) => (alone ? "layer " : "") + reading.layer(settled(reading, t))),
      followed.map(([kind, name, pin]) => {
        const each = cells.map(cell => (cell ? app.pinValue(cell, pin) : null))
        const piece = app.readings[pin[0]!]!.piece(pin[1]!)
        return tokenLines(kind, name, each, cells, app.isDiff, pin.length == 2 && above.has(piece))
      }),
    ]
  }

  private nextLine(cells: (Cell | null)[]) {
    const next = (cell: Cell | null) => (cell ? cell.reading.nextIds[cell.t]! : -1)
    const values = cells.map(cell =>
      next(cell) < 0 ? null : cell!.reading.token(cell!.l, cell!.t, next(cell)),
    )
    const alone = cells.length == 1
    if (!values.some(value => value)) {
      return h("tr", h("th", "next token"), h("td", { colspan: cells.length + 2 }, "none follows"))
    }
    const [cell] = cells
    const name = alone ? token(cell!, next(cell!)) : ""
    return tokenLines("next token", name, values, cells, this.app.isDiff)
  }
}

/** Rank and probability of a token: in one line where there is one cell, else in two (or one, where the
 * probability was shown already). */
function tokenLines(
  kind: string,
  name: Node | string,
  values: (TokenValue | null)[],
  cells: (Cell | null)[],
  isDiff: boolean,
  onlyRank = false,
) {
  const rank = (value: TokenValue | null, i: number) =>
    !value ? "–" : value.rank == Infinity ? "> " + cells[i]!.reading.K : "#" + count(value.rank)
  if (cells.length == 1) {
    const [value] = values
    const shown = value ? bounded(cells[0]!, value) : "–"
    return h("tr", h("th", kind), h("td.name", name), h("td", rank(value!, 0)), h("td", shown))
  }
  const [a, b] = values
  const ranks = [a?.rank ?? NaN, b?.rank ?? NaN]
  return [
    !onlyRank &&
      h(
        "tr",
        h("th", kind, " ", name),
        values.map((value, i) => h("td", value && cells[i] ? bounded(cells[i]!, value) : "–")),
        isDiff && h("td.delta", tokenDelta(cells, values)),
      ),
    h(
      "tr",
      h("th", onlyRank ? ["rank of ", name] : "… rank"),
      values.map((value, i) => h("td", rank(value, i))),
      isDiff &&
        h("td.delta", Number.isFinite(ranks[1]! - ranks[0]!) ? signed(ranks[1]! - ranks[0]!, 0) : "–"),
    ),
  ]
}

/** Who wrote a token after this position, where the reading keeps it. */
function recorded({ reading, t }: Cell, id: number): Attribution | undefined {
  const kept = reading.manifest.meta.attributions as (Attribution & { position: number; id: number })[]
  return kept?.find(each => each.position == reading.positionNumber(t) && each.id == id)
}

/** A probability; of a token below the last slot, what it is at most. */
function bounded(cell: Cell, { logprob, rank }: TokenValue): string {
  return rank == Infinity ? "<" + prob(least(cell)) : prob(logprob)
}

/** The log-probability of the last slot. */
const least = ({ reading, l, t }: Cell) => reading.topLogprob(l, t, reading.K - 1)

/** B minus A of a token; where one is only known to be small, what the difference is at least. */
function tokenDelta([a, b]: (Cell | null)[], [v, w]: (TokenValue | null)[]): string {
  if (!a || !b || !v || !w) return "–"
  const [isBelowA, isBelowB] = [v.rank == Infinity, w.rank == Infinity]
  const p = Math.exp(isBelowA ? least(a) : v.logprob)
  const q = Math.exp(isBelowB ? least(b) : w.logprob)
  const near = probDelta(p, q)
  if (!isBelowA && !isBelowB) return near
  if ((isBelowA && p >= q) || (isBelowB && q >= p)) return "–"
  const far = probDelta(isBelowA ? 0 : p, isBelowB ? 0 : q)
  return near == far ? near : (isBelowA ? "≥ " : "≤ ") + near
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
