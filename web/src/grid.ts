/* The grid: a canvas that draws only what is in view, under headers and a live cell in the DOM.
 *
 * Scrolling is the browser's own (a large empty box, the picture sticks to its corner), so wheels,
 * touch and scrollbars behave. Below 32 × 13 pixels a cell loses its words, below 5 its gap; the
 * colours of all cells in view are one small image, blown up without smoothing. */
import type { Scale } from "./colour"
import { framed, h } from "./dom"
import { fit, rtl } from "./text"

export interface Sheet {
  name: string
  nrow: number
  ncol: number
  scale: Scale
  /** columns about to be drawn */
  need(c0: number, c1: number): void
  /** place on the scale 0 … 255, -1 missing, -2 not here yet */
  shade(i: number, c: number): number
  words(i: number, c: number): [first: string, second: string, strong: boolean]
  /** found by the search */
  mark(i: number, c: number): boolean
  row(i: number): string
  col(c: number): { text: string; position: string; special: boolean; pinned: boolean }
  speak(i: number, c: number): string
}

interface Hooks {
  /** the pointer is over a cell, or (-1) over none */
  hover(i: number, c: number): void
  /** a cell was chosen, or (-1) a column's header */
  pick(i: number, c: number): void
  scrolled(): void
  zoom(factor: number): void
}

export type Place = [i: number, c: number]
export const ROWHEAD = 62

export class Grid {
  w = 0
  h = 0
  cursor?: Place
  hovered?: Place
  draw = framed(() => this.paint())
  sc: HTMLElement
  private head = 40
  private canvas = h("canvas", { "aria-hidden": "true" })
  private cols = h("div", { role: "row", "aria-rowindex": 1 })
  private strip = h("div.cols", this.cols)
  private rows = h("div.rows", { role: "rowgroup" })
  private cell = h("div", { role: "gridcell" })
  private stick = h(
    "div.stick",
    this.canvas,
    this.strip,
    this.rows,
    h("div.corner", "depth"),
    h("div.sr", { role: "row" }, this.cell),
  )
  private space = h("div", this.stick)
  private image = h("canvas")
  private fitted: Record<string, string> = {}
  private heads = new Map<number, HTMLElement>()
  private sides = new Map<number, HTMLElement>()
  private hatch?: CanvasPattern | null

  constructor(
    public sheet: Sheet,
    hooks: Hooks,
    id: string,
  ) {
    const { stick } = this
    this.cell.id = id
    this.sc = h(
      "div.sc",
      {
        role: "grid",
        tabindex: 0,
        "aria-activedescendant": id,
        "aria-label": sheet.name,
        onscroll: () => {
          this.draw()
          hooks.scrolled()
        },
      },
      this.space,
    )
    const at = (e: MouseEvent): Place => {
      const b = stick.getBoundingClientRect()
      return this.locate(e.clientX - b.left, e.clientY - b.top)
    }
    stick.onpointermove = e => hooks.hover(...at(e))
    stick.onpointerleave = () => hooks.hover(-1, -1)
    stick.onclick = e => {
      const p = at(e)
      p[1] >= 0 && hooks.pick(...p)
    }
    this.sc.addEventListener(
      "wheel",
      e => {
        if (!e.ctrlKey && !e.metaKey) return
        e.preventDefault()
        hooks.zoom(e.deltaY < 0 ? 1.25 : 0.8)
      },
      { passive: false },
    )
  }

  get width() {
    return Math.max(0, this.sc.clientWidth - ROWHEAD)
  }
  get height() {
    return Math.max(0, this.sc.clientHeight - this.head)
  }
  /** columns in view */
  get seen(): Place {
    const x = this.sc.scrollLeft
    return [Math.floor(x / this.w), Math.min(this.sheet.ncol, Math.ceil((x + this.width) / this.w))]
  }
  /** top of a row in the picture; the last row is held at the lower edge while its place is below */
  private top(i: number) {
    const y = i * this.h - this.sc.scrollTop
    return i == this.sheet.nrow - 1 && this.height > 3 * this.h ? Math.min(y, this.height - this.h) : y
  }

  size(w: number, high: number, limit: number) {
    const { sc, sheet, space } = this
    this.w = w
    this.h = high
    this.head = w >= 40 ? 40 : w >= 14 ? 84 : 22
    this.strip.className = "cols" + (w < 14 ? " slim" : w < 40 ? " upright" : "")
    const W = ROWHEAD + sheet.ncol * w,
      H = this.head + sheet.nrow * high
    space.style.cssText = `width:${W}px;height:${H}px;--head:${this.head}px`
    sc.style.height = Math.min(H + (W > sc.clientWidth ? 15 : 1), Math.max(160, limit)) + "px"
    sc.setAttribute("aria-rowcount", String(sheet.nrow + 1))
    sc.setAttribute("aria-colcount", String(sheet.ncol + 1))
    this.fresh()
  }
  /** Headers carry pins and marks, words their width: make them anew. */
  fresh() {
    this.fitted = {}
    for (const m of [this.heads, this.sides]) (m.forEach(e => e.remove()), m.clear())
    this.draw()
  }

  /** Row (-1: a header, or none) and column (-1: none) at a point of the picture. */
  private locate(x: number, y: number): Place {
    const c = Math.floor((x - ROWHEAD + this.sc.scrollLeft) / this.w),
      last = this.sheet.nrow - 1
    y -= this.head
    if (x < ROWHEAD || c >= this.sheet.ncol || y > this.height) return [-1, -1]
    const i = y >= this.top(last) ? last : Math.floor((y + this.sc.scrollTop) / this.h)
    return [y < 0 ? -1 : Math.min(i, last), y > this.top(last) + this.h ? -1 : c]
  }

  /** Where a cell stands on the screen. */
  rect(i: number, c: number) {
    const b = this.stick.getBoundingClientRect()
    return new DOMRect(
      b.left + ROWHEAD + c * this.w - this.sc.scrollLeft,
      b.top + this.head + this.top(i),
      this.w,
      this.h,
    )
  }

  /** Scroll as little as needed to have a cell in view with a margin of one, or to its centre. */
  reveal(i: number, c: number, centre = false) {
    const { sc, w, width } = this,
      move = (now: number, at: number, size: number, room: number) =>
        at - size < now ? at - size : at + 2 * size > now + room ? at + 2 * size - room : now
    const x = move(sc.scrollLeft, c * w, w, width)
    sc.scrollLeft = centre && x != sc.scrollLeft ? c * w - width / 2 : x
    if (i >= 0 && i < this.sheet.nrow - 1)
      sc.scrollTop = move(sc.scrollTop, i * this.h, this.h, this.height - this.h)
    this.draw()
  }

  /** Name the chosen cell for a screen reader. */
  speak() {
    const [i, c] = this.cursor!
    this.cell.parentElement!.setAttribute("aria-rowindex", String(i + 2))
    this.cell.setAttribute("aria-colindex", String(c + 2))
    this.cell.textContent = this.sheet.speak(i, c)
  }

  private paint() {
    const { sc, stick, canvas, sheet, w, h: hh, width: vw, height: vh } = this,
      { clientWidth: W, clientHeight: H } = sc
    if (!W || !H || !w) return
    const dpr = devicePixelRatio || 1,
      x = Math.round(sc.scrollLeft * dpr) / dpr,
      y = sc.scrollTop
    if (canvas.width != Math.round(vw * dpr) || canvas.height != Math.round(vh * dpr)) {
      canvas.width = Math.round(vw * dpr)
      canvas.height = Math.round(vh * dpr)
    }
    stick.style.cssText = `width:${W}px;height:${H}px`
    canvas.style.cssText = `width:${vw}px;height:${vh}px;left:${ROWHEAD}px;top:${this.head}px`
    const g = canvas.getContext("2d", { alpha: false })!,
      css = getComputedStyle(sc),
      ink = css.color,
      back = css.backgroundColor
    g.setTransform(dpr, 0, 0, dpr, 0, 0)
    g.fillStyle = back
    g.fillRect(0, 0, vw, vh)
    const [c0, c1] = this.seen,
      last = sheet.nrow - 1,
      end = this.top(last)
    const r0 = Math.floor(y / hh),
      r1 = Math.min(last, Math.ceil((y + vh) / hh))
    sheet.need(c0, c1)
    this.band(g, r0, r1, c0, c1, x, css)
    // the model's own row is set off by a rule
    g.fillStyle = back
    g.fillRect(0, end - 4, vw, hh + 4)
    this.band(g, last, last + 1, c0, c1, x, css)
    g.fillStyle = ink
    if (hh > 4) g.fillRect(0, end - 2, Math.min(vw, sheet.ncol * w - x), 1.5)
    const box = (p: Place | undefined, colour: string, thick: number) => {
      if (!p || (p[0] < last && this.top(p[0]) > end - hh / 2)) return
      for (const [s, t] of [
        [back, thick + 2],
        [colour, thick],
      ] as const) {
        g.strokeStyle = s
        g.lineWidth = t
        g.strokeRect(p[1] * w - x, this.top(p[0]), Math.max(w, 6) - 1, Math.max(hh, 6) - 1)
      }
    }
    box(this.hovered, ink, 1.5)
    box(this.cursor, css.outlineColor, 2.5)
    this.headers(x, c0, c1, r0, r1)
  }

  /** Rows r0 … r1 of the columns c0 … c1. */
  private band(
    g: CanvasRenderingContext2D,
    r0: number,
    r1: number,
    c0: number,
    c1: number,
    x: number,
    css: CSSStyleDeclaration,
  ) {
    const { sheet, w, h: hh, image } = this,
      { rgba, ink } = sheet.scale,
      nc = c1 - c0,
      nr = r1 - r0
    if (nc <= 0 || nr <= 0) return
    const data = new ImageData(nc, nr),
      px = new Uint32Array(data.data.buffer),
      shades = new Int16Array(nc * nr),
      top = this.top(r0),
      left = c0 * w - x
    const each = (f: (n: number, i: number, c: number, cx: number, cy: number) => void) => {
      for (let n = 0; n < shades.length; n++) {
        const i = Math.floor(n / nc),
          c = n % nc
        f(n, r0 + i, c0 + c, left + c * w, top + i * hh)
      }
    }
    each((n, i, c) => {
      px[n] = rgba[(shades[n] = sheet.shade(i, c))] ?? 0
    })
    image.width = nc
    image.height = nr
    image.getContext("2d")!.putImageData(data, 0, 0)
    g.imageSmoothingEnabled = false
    g.drawImage(image, left, top, nc * w, nr * hh)
    if (w > 4 && hh > 4) {
      g.fillStyle = this.hatch ??= hatching(g)
      each((n, _, __, cx, cy) => shades[n]! == -1 && g.fillRect(cx, cy, w, hh))
      g.fillStyle = css.backgroundColor
      for (let c = 0; c <= nc; c++) g.fillRect(left + c * w - 1, top, 1, nr * hh)
      for (let i = 0; i <= nr; i++) g.fillRect(left, top + i * hh - 1, nc * w, 1)
    }
    const room = w - 10,
      measure = (s: string) => g.measureText(s).width,
      inked = (n: number) => ink[shades[n]!] ?? css.color
    g.textBaseline = "middle"
    // ordinary words first, then in bold those that agree with the final row: few changes of font
    if (w > 31 && hh > 12)
      for (const bold of [false, true]) {
        const font = (g.font = `${bold ? 650 : 400} 12px ${css.fontFamily}`)
        each((n, i, c, cx, cy) => {
          const [first, second, strong] = sheet.words(i, c),
            two = hh >= 36 && second
          if (shades[n] == -2 || strong != bold || !first) return
          const word = (this.fitted[+bold + first] ??= fit(first, room, measure))
          g.fillStyle = inked(n)
          g.fillText(rtl(word) ? "\u2068" + word + "\u2069" : word, cx + 5, cy + hh / 2 - (two ? 7 : 0))
          if (!two) return
          g.font = font.replace("12px", "10px")
          g.fillText(fit(second, room, measure), cx + 5, cy + hh / 2 + 8)
          g.font = font
        })
      }
    each((n, i, c, cx, cy) => {
      if (!sheet.mark(i, c)) return
      g.strokeStyle = inked(n)
      g.lineWidth = w > 12 ? 2 : 1
      g.strokeRect(cx + 1.5, cy + 1.5, w - 4, hh - 4)
    })
  }

  /** Only the headers in view exist; they move with their container. */
  private headers(x: number, c0: number, c1: number, r0: number, r1: number) {
    const { sheet, w, h: hh, cols, rows, heads, sides } = this,
      last = sheet.nrow - 1,
      end = this.top(last),
      slim = w < 14
    const tick = slim ? [5, 10, 20, 25, 50, 100].find(s => s * w >= 46)! : 1,
      skip = Math.ceil(14 / hh),
      on = this.hovered ?? this.cursor
    const keep = (
      m: Map<number, HTMLElement>,
      from: number,
      to: number,
      want: (n: number) => boolean,
      box: HTMLElement,
      make: (n: number) => HTMLElement,
    ) => {
      for (const [n, e] of m) if (n < from || n >= to || !want(n)) (e.remove(), m.delete(n))
      for (let n = from; n < to; n++)
        if (want(n) && !m.has(n)) {
          const e = make(n)
          m.set(n, e)
          box.append(e)
        }
    }
    keep(
      heads,
      c0,
      c1,
      c => c % tick == 0,
      cols,
      c => {
        const { text, position, special, pinned } = sheet.col(c)
        return h(
          "div",
          {
            role: "columnheader",
            "aria-colindex": c + 2,
            title: text,
            class: (special ? "special " : "") + (pinned ? "pinned" : ""),
            style: `left:${c * w}px;width:${tick * w}px`,
          },
          h("small", position),
          !slim && h("bdi", text),
        )
      },
    )
    keep(
      sides,
      r0,
      last + 1,
      i => i == last || (i < r1 && i % skip == 0 && this.top(i) < end - Math.max(14, hh / 2)),
      rows,
      i =>
        h(
          i == last ? "div.last" : "div",
          { role: "row", "aria-rowindex": i + 2, style: `line-height:${Math.max(hh, 12)}px` },
          h("span", { role: "rowheader" }, sheet.row(i)),
        ),
    )
    cols.style.transform = `translateX(${-x}px)`
    rows.style.height = this.height + "px"
    for (const [i, e] of sides)
      ((e.style.transform = `translateY(${this.top(i)}px)`), e.classList.toggle("on", i == on?.[0]))
    for (const [c, e] of heads) e.classList.toggle("on", c == on?.[1])
  }
}

function hatching(g: CanvasRenderingContext2D): CanvasPattern {
  const c = h("canvas", { width: 6, height: 6 }),
    p = c.getContext("2d")!
  p.strokeStyle = "#8889"
  for (const d of [-6, 0, 6]) (p.moveTo(d, 6), p.lineTo(d + 6, 0))
  p.stroke()
  return g.createPattern(c, "repeat")!
}
