/* Scrub through time: a text that the model wrote, as far as it had come. */
import type { App } from "./app"
import { h } from "./dom"
import { visible, clip } from "./text"

/** Milliseconds between two tokens of the replay. */
const PACE = 220

export class Time {
  private slider = h("input", { type: "range", "aria-label": "Tokens written so far" })
  private words = h("span.lab")
  private play = h("button", { type: "button", onclick: () => this.toggle() })
  readonly element = h("div.time", { hidden: true }, this.play, this.slider, this.words)
  private timer?: ReturnType<typeof setInterval>

  constructor(private app: App) {
    this.slider.oninput = () => {
      const count = Number(this.slider.value)
      this.stop()
      this.show(count)
    }
    this.draw()
  }

  /** The first column that led to a token the model wrote. */
  private get first(): number {
    const { app } = this
    const from = app.generatedFrom
    return from < 0 ? app.total : Math.max(1, from)
  }

  private show(count: number) {
    const { app } = this
    const layer = app.state.cell[0] ?? app.layers.length - 1
    app.set({ upto: count == app.total ? 0 : count, cell: [layer, count - 1] })
  }

  private toggle() {
    if (this.timer) return this.stop()
    const { app } = this
    const step = () => {
      const at = app.state.upto || app.total
      if (at >= app.total) this.stop()
      else this.show(at + 1)
    }
    this.show(app.state.upto || this.first)
    if (!app.state.upto) this.show(this.first)
    this.timer = setInterval(step, PACE)
    this.draw()
  }
  stop() {
    clearInterval(this.timer)
    this.timer = undefined
    this.draw()
  }

  draw() {
    const { app, slider, play, words, element } = this
    const { first } = this
    element.hidden = first >= app.total
    if (element.hidden) return
    slider.min = String(first)
    slider.max = String(app.total)
    slider.value = String(app.state.upto || app.total)
    play.textContent = this.timer ? "❚❚" : "▶"
    play.setAttribute("aria-label", this.timer ? "Stop" : "Replay")
    const t = app.positionA(app.columnCount - 1)
    const next = app.readingA.nextIds[t] ?? -1
    const token = visible(clip(app.readingA.piece(next), 20))
    words.textContent =
      next < 0 ? "" : `writes ${token} · ${app.columnCount - first + 1} of ${app.total - first + 1}`
  }
}
