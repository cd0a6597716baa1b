/* Trajectories as SVG: one line per token, broken where nothing is known, named at its end. */
import { svg } from "./dom"
import { clip, visible } from "./text"
import { decade } from "./values"

export interface Line {
  name: string
  tail: string
  colour: string
  dash: string
  ys: number[]
}

export interface Plot {
  title: string
  /** ranks instead of log-probabilities */
  ranked?: boolean
  xs: string[]
  lines: Line[]
  /** place to mark */
  at: number
  xlabel: string
  width: number
  pick?: (x: number) => void
}

const T = 26,
  B = 176,
  L = 44

export function chart({ title, ranked, xs, lines, at, xlabel, width: W, pick }: Plot): SVGElement {
  // both axes count decades downwards: of probability below 1, of rank above 1
  const y10 = (v: number) => (ranked ? Math.log10(v) : -Math.min(v, 0) / Math.LN10),
    n = Math.max(1, xs.length - 1),
    R = W - 96
  const deep = Math.ceil(
    Math.max(ranked ? 1 : 2, ...lines.flatMap(l => l.ys.map(y10).filter(Number.isFinite))),
  )
  const X = (i: number) => L + (i / n) * (R - L),
    Y = (e: number) => T + (e / deep) * (B - T)
  const text = (x: number, y: number, s: string, anchor = "middle", cls = "") =>
    svg("text", { x, y, "text-anchor": anchor, class: cls }, s)
  const out = svg(
    "svg",
    { viewBox: `0 0 ${W} 210`, width: W, height: 210, role: "img", "aria-label": title, class: "chart" },
    text(8, 15, title, "start", "t"),
    text((L + R) / 2, 205, xlabel),
  )
  const step = Math.ceil((xs.length * 42) / (R - L)),
    every = Math.ceil(deep / 5)
  for (let e = 0; e <= deep; e += every)
    out.append(
      svg("path", { d: `M${L} ${Y(e)}H${R}`, class: "g" }),
      text(L - 5, Y(e) + 3.5, ranked ? decade(e) : (["100%", "10%", "1%", "0.1%"][e] ?? decade(-e)), "end"),
    )
  xs.forEach((x, i) => i % step || out.append(text(X(i), B + 14, visible(clip(x, 6)))))
  if (at >= 0) out.append(svg("path", { d: `M${X(at)} ${T}V${B}`, class: "m" }))
  const ends: [number, Line][] = []
  for (const line of lines) {
    let d = "",
      pen = "M",
      end = NaN
    line.ys.forEach((v, i) => {
      const x = X(i).toFixed(1),
        y = Y(y10(v))
      if (!Number.isFinite(y)) return void (pen = "M")
      d += pen + x + " " + (end = y).toFixed(1)
      pen = "L"
      if (n < 64)
        out.append(svg("circle", { cx: x, cy: y.toFixed(1), r: i == at ? 3.5 : 2, fill: line.colour }))
    })
    if (!d) continue
    out.append(
      svg("path", {
        d,
        fill: "none",
        stroke: line.colour,
        "stroke-width": 1.8,
        "stroke-dasharray": line.dash,
      }),
    )
    ends.push([end, line])
  }
  // names at the ends of their lines, pushed apart
  let y = T - 8
  for (const [end, { name, tail, colour }] of ends.sort((a, b) => a[0] - b[0])) {
    y = Math.max(end, y + 13)
    out.append(
      svg("rect", { x: R + 8, y: y - 4, width: 8, height: 8, rx: 2, fill: colour }),
      text(R + 20, y + 4, clip(name, 11 - tail.length) + tail, "start", "n"),
    )
  }
  if (!y || !ends[0]) out.append(text(L + 12, T + 24, "not recorded here", "start"))
  if (pick)
    out.onclick = e => {
      const b = out.getBoundingClientRect(),
        i = Math.round(((((e.clientX - b.left) * W) / b.width - L) / (R - L)) * n)
      if (i >= 0 && i < xs.length) pick(i)
    }
  return out
}
