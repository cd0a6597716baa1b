/* All positions in one strip, with the part in view framed; a click or a drag goes there. */
import type { App } from "./app"
import { h } from "./dom"
import type { Grid } from "./grid"

export class Overview {
  private canvas = h("canvas", { "aria-hidden": "true" })
  private view = h("div.view")
  el = h("div.overview", { hidden: true }, this.canvas, this.view)
  stale = true

  constructor(
    private app: App,
    go: (c: number) => void,
  ) {
    const { el } = this,
      to = (e: PointerEvent) => {
        const b = el.getBoundingClientRect()
        if (e.buttons) (el.setPointerCapture(e.pointerId), go(((e.clientX - b.left) / b.width) * app.ncol))
      }
    el.onpointerdown = el.onpointermove = to
  }

  draw({ sheet, sc, w, width }: Grid) {
    const { el, canvas, view, app } = this,
      { ncol } = app
    el.hidden = ncol * w <= width + 1
    const W = el.clientWidth,
      x = W / ncol,
      H = Math.min(36, sheet.nrow)
    view.style.cssText = `left:${(sc.scrollLeft / w) * x}px;width:${Math.max(4, (width / w) * x)}px`
    if (!W || (!this.stale && canvas.width == W)) return
    this.stale = false
    // a pixel shows the middle one of its positions: no mean of unlike things
    const data = new ImageData(W, H),
      px = new Uint32Array(data.data.buffer)
    for (let n = 0; n < W * H; n++)
      px[n] =
        sheet.scale.rgba[
          sheet.shade(
            Math.round((Math.floor(n / W) * (sheet.nrow - 1)) / Math.max(1, H - 1)),
            Math.floor(((n % W) + 0.5) / x),
          )
        ] ?? 0
    canvas.width = W
    canvas.height = H
    canvas.getContext("2d")!.putImageData(data, 0, 0)
  }
}
