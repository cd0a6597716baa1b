/* The prompt as text above the grid; of a long one, the part around the columns in view. */
import type { App } from "./app"
import { clamp, h, range } from "./dom"
import { clip, visible } from "./text"
import { settled } from "./values"

/** Columns shown at most, and the step by which the part moves. */
const LENGTH = 500
const STEP = 100

/** Plain text reads as text; anything else is made visible. */
const PLAIN = /^ ?[\p{L}\p{N}\p{P}\p{S}]{1,40}$/u
const shown = (piece: string) => (PLAIN.test(piece) ? piece : visible(clip(piece, 40)).replace(/↵/g, "↵\n"))

export class Prompt {
  readonly element = h("div.prompt", { "aria-label": "Prompt", role: "group" })
  private drawn = ""

  constructor(
    private app: App,
    private go: (column: number) => void,
  ) {}

  /** Marks have changed: draw again, wherever the grid is. */
  refresh() {
    this.drawn = ""
  }

  draw([first, stop]: [number, number]) {
    const { columnCount, state } = this.app
    const middle = Math.round((first + stop) / 2 / STEP) * STEP
    const start = columnCount <= LENGTH ? 0 : clamp(middle - 2 * STEP, 0, columnCount)
    const end = Math.min(columnCount, start + LENGTH)
    const key = [state.a, start].join()
    if (key == this.drawn) return
    this.drawn = key
    this.element.replaceChildren(
      start ? "… " : "",
      ...range(end - start, start).flatMap(column => this.token(column)),
      end < columnCount ? " …" : "",
    )
  }

  private token(column: number): Node[] {
    const { app } = this
    const { readingA, state } = app
    const { head, ids, pieces, special } = readingA
    const t = app.positionA(column)
    if (t < 0) return []
    const role = head.roles.find(([start]) => start == t)?.[2]
    const styles = ["tk"]
    if (special.has(ids[t]!)) styles.push("special")
    if (app.foundPositions[state.a]!.has(t)) styles.push("found")
    if (state.pos.includes(column)) styles.push("pinned")
    // tinted where the answer is settled, the more the earlier
    const since = readingA.ready(t) && readingA.L > 1 ? settled(readingA, t) : readingA.L - 1
    const early = Math.round(100 * (1 - since / Math.max(1, readingA.L - 1)))
    const token = h(
      "span",
      {
        class: styles.join(" "),
        "data-column": column,
        title: readingA.ready(t) && `answer settled from layer ${readingA.layer(since)}`,
        style: early > 0 ? `background:color-mix(in srgb,var(--accbg) ${early}%,transparent)` : "",
        onclick: () => this.go(column),
      },
      h("bdi", shown(pieces[t]!)),
    )
    return role ? [h("span.role", role), token] : [token]
  }

  /** Mark the current position. */
  mark(column: number | undefined) {
    const { element } = this
    const token = element.querySelector<HTMLElement>(`[data-column="${column}"]`)
    const marked = element.querySelector(".on")
    if (marked == token) return
    marked?.classList.remove("on")
    if (!token) return
    token.classList.add("on")
    const { offsetTop } = token
    element.scrollTop = clamp(element.scrollTop, offsetTop - element.clientHeight + 24, offsetTop - 4)
  }
}
