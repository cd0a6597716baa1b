/* The prompt as text above the grid; of a long one, the part around the columns in view. */
import type { App } from "./app"
import { clamp, h, range } from "./dom"
import { clip, letter, visible } from "./text"
import { settled } from "./values"

/** Columns shown at most, and the step by which the part moves. */
const LENGTH = 500
const STEP = 100

/** Plain text reads as text; anything else is made visible. */
const PLAIN = /^ ?[\p{L}\p{N}\p{P}\p{S}]{1,40}$/u
const shown = (piece: string) => (PLAIN.test(piece) ? piece : visible(clip(piece, 40)).replace(/⏎/g, "⏎\n"))

export class Prompt {
  readonly element = h("div.prompt", { "aria-label": "Prompt", role: "group" })
  private drawn = ""
  private marked = ""

  constructor(
    private app: App,
    private go: (column: number) => void,
  ) {}

  /** Marks have changed: draw again, wherever the grid is. */
  refresh() {
    this.drawn = this.marked = ""
  }

  draw([first, stop]: [number, number]) {
    const { app } = this
    const { columnCount } = app
    const middle = Math.round((first + stop) / 2 / STEP) * STEP
    const start = columnCount <= LENGTH ? 0 : clamp(middle - 2 * STEP, 0, columnCount)
    const end = Math.min(columnCount, start + LENGTH)
    const key = [app.panes, start, columnCount].join()
    if (key == this.drawn) return
    this.drawn = key
    this.element.replaceChildren(
      ...app.panes.map(r =>
        h(
          "div",
          app.several && h("b.letter", letter(r)),
          start ? "… " : "",
          range(end - start, start).map(column => this.token(r, column)),
          end < columnCount ? " …" : this.last(r),
        ),
      ),
    )
  }

  private token(r: number, column: number): Node[] {
    const { app } = this
    const reading = app.readings[r]!
    const { head, ids, pieces, special } = reading
    const t = app.columns[r]![column]!
    if (t < 0) return []
    const role = head.roles.find(([start]) => start == t)?.[2]
    const styles = ["tk"]
    const written = reading.generated[t]
    if (written) styles.push("written")
    if (special.has(ids[t]!)) styles.push("special")
    if (app.foundPositions[r]!.has(t)) styles.push("found")
    if (app.state.pos.includes(column)) styles.push("pinned")
    // tinted where the answer is settled, the more the earlier: of a token that the model wrote, itself,
    // which was settled in the column before
    const of = written ? t - 1 : t
    const known = of >= 0 && reading.ready(of)
    const since = known && reading.L > 1 ? settled(reading, of) : reading.L - 1
    const early = Math.round(100 * (1 - since / Math.max(1, reading.L - 1)))
    const token = h(
      "span",
      {
        class: styles.join(" "),
        "data-column": column,
        title:
          known && `${written ? "was settled from" : "answer settled from"} layer ${reading.layer(since)}`,
        style: early > 0 ? `background:color-mix(in srgb,var(--accbg) ${early}%,transparent)` : "",
        onclick: () => this.go(column),
      },
      h("bdi", shown(pieces[t]!)),
    )
    return role ? [h("span.role", role), token] : [token]
  }

  /** What the model wrote last has no column: it was not read again. */
  private last(r: number): Node | string {
    const { app } = this
    const reading = app.readings[r]!
    const t = app.columns[r]![app.columnCount - 1] ?? -1
    const next = reading.nextIds[t] ?? -1
    if (next < 0 || !(reading.generated[t] || reading.generated.some(written => written))) return ""
    const since = reading.ready(t) ? settled(reading, t) : reading.L - 1
    const early = Math.round(100 * (1 - since / Math.max(1, reading.L - 1)))
    const style = `background:color-mix(in srgb,var(--accbg) ${early}%,transparent)`
    const title = `was settled from layer ${reading.layer(since)}`
    return h(
      "span.tk.written",
      { style, title, onclick: () => this.go(app.columnCount - 1) },
      h("bdi", shown(reading.piece(next))),
    )
  }

  /** Mark the current position, in every reading. */
  mark(column: number | undefined) {
    const { element } = this
    if (this.marked == `${column}/${this.drawn}`) return
    this.marked = `${column}/${this.drawn}`
    element.querySelectorAll(".on").forEach(token => token.classList.remove("on"))
    const tokens = element.querySelectorAll<HTMLElement>(`[data-column="${column}"]`)
    tokens.forEach(token => token.classList.add("on"))
    if (!tokens.length) return
    const { offsetTop } = tokens[0]!
    element.scrollTop = clamp(element.scrollTop, offsetTop - element.clientHeight + 24, offsetTop - 4)
  }
}
