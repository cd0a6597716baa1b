/* Trajectories as SVG: one line per token, broken where nothing is known, named at its end. */
import { range, svg } from "./dom"
import { clip, visible } from "./text"
import { decade, shortNumber } from "./values"

export interface Line {
  name: string
  /** what follows the name and is never cut */
  suffix: string
  colour: string
  dash: string
  ys: number[]
}

export interface Plot {
  title: string
  /** what `ys` are: log-probabilities, ranks, or values as they are */
  axis: "probability" | "rank" | "linear"
  xs: string[]
  lines: Line[]
  /** said where there is no line to draw */
  empty: string
  /** place to mark */
  at: number
  xlabel: string
  ylabel: string
  /** the first place that the model wrote itself; -1 for none */
  from?: number
  width: number
  pick?: (x: number) => void
}

/** Places 0 (top) … 1 (bottom) of values, and the ticks there. */
interface Axis {
  place(value: number): number
  ticks: [label: string, place: number][]
}

const HEIGHT = 210
const TOP = 26
const BOTTOM = 176
const LEFT = 58
/** room for names at the right */
const NAMES = 104

const AXES: Record<Plot["axis"], (values: number[]) => Axis> = {
  // both count decades downwards: of probability below 1, of rank above 1
  probability: values => decades(values, v => -Math.min(v, 0) / Math.LN10, 2, percent),
  rank: values => decades(values, Math.log10, 1, decade),
  linear,
}

const percent = (exponent: number) => ["100%", "10%", "1%", "0.1%"][exponent] ?? decade(-exponent)

function decades(
  values: number[],
  exponent: (v: number) => number,
  least: number,
  label: (e: number) => string,
): Axis {
  const deepest = Math.ceil(Math.max(least, ...values.map(exponent)))
  const every = Math.ceil(deepest / 5)
  const exponents = range(Math.floor(deepest / every) + 1).map(i => i * every)
  return { place: v => exponent(v) / deepest, ticks: exponents.map(e => [label(e), e / deepest]) }
}

/** From the least to the largest value, with 0 inside. */
function linear(values: number[]): Axis {
  const low = Math.min(0, ...values)
  const high = Math.max(0, ...values)
  const span = high - low || 1
  const power = 10 ** Math.floor(Math.log10(span / 4))
  const step = [1, 2, 5, 10].find(n => n * power >= span / 4)! * power
  const first = Math.ceil(low / step)
  const ticks = range(Math.floor(high / step) - first + 1, first).map(n => n * step)
  const place = (value: number) => (high - value) / span
  return { place, ticks: ticks.map(value => [shortNumber(value), place(value)]) }
}

const text = (x: number, y: number, words: string, anchor = "middle", style = "") =>
  svg("text", { x, y, "text-anchor": anchor, class: style }, words)

export function chart(plot: Plot): SVGElement {
  const { title, xs, lines, at, xlabel, width } = plot
  const right = width - NAMES
  const axis = AXES[plot.axis](lines.flatMap(line => line.ys).filter(Number.isFinite))
  const last = Math.max(1, xs.length - 1)
  const xOf = (i: number) => LEFT + (i / last) * (right - LEFT)
  const yOf = (place: number) => TOP + place * (BOTTOM - TOP)
  const out = svg(
    "svg",
    {
      viewBox: `0 0 ${width} ${HEIGHT}`,
      width,
      height: HEIGHT,
      role: "img",
      "aria-label": title,
      class: "chart",
    },
    text(8, 15, clip(title, Math.floor((width - 44) / 6.6)), "start", "t"),
    svg(
      "text",
      { "text-anchor": "middle", transform: `translate(11 ${(TOP + BOTTOM) / 2}) rotate(-90)` },
      plot.ylabel,
    ),
    text((LEFT + right) / 2, HEIGHT - 5, xlabel),
  )
  for (const [label, place] of axis.ticks) {
    out.append(svg("path", { d: `M${LEFT} ${yOf(place)}H${right}`, class: "g" }))
    out.append(text(LEFT - 5, yOf(place) + 3.5, label, "end"))
  }
  const every = Math.ceil((xs.length * 42) / (right - LEFT))
  xs.forEach((x, i) => {
    if (i % every == 0) out.append(text(xOf(i), BOTTOM + 14, visible(clip(x, 6))))
  })
  if (at >= 0) out.append(svg("path", { d: `M${xOf(at)} ${TOP}V${BOTTOM}`, class: "m" }))
  const from = plot.from ?? -1
  if (from >= 0) {
    const x = xOf(Math.max(0, from - 0.5))
    // its label keeps off the marked points
    const isNear = at >= 0 && at < from && x - xOf(at) < 48
    out.append(
      svg("path", { d: `M${x} ${TOP}V${BOTTOM}`, class: "g" }),
      text((isNear ? xOf(at) - 4 : x) - 4, TOP + 9, "prompt", "end"),
    )
  }
  const ends: [y: number, line: Line][] = []
  for (const line of lines) {
    const end = drawLine(out, line, at, xOf, value => yOf(axis.place(value)), last < 64)
    if (end != null) ends.push([end, line])
  }
  nameLines(out, ends, right)
  if (!ends.length) out.append(text(LEFT + 12, TOP + 24, plot.empty, "start"))
  if (plot.pick) {
    out.onclick = event => {
      const box = out.getBoundingClientRect()
      const x = ((event.clientX - box.left) * width) / box.width
      const i = Math.round(((x - LEFT) / (right - LEFT)) * last)
      if (i >= 0 && i < xs.length) plot.pick!(i)
    }
  }
  return out
}

/** Draw a line, broken where a value is missing; the height at which it ends, if it was drawn at all. */
function drawLine(
  out: SVGElement,
  { ys, colour, dash }: Line,
  at: number,
  xOf: (i: number) => number,
  yOf: (value: number) => number,
  dots: boolean,
): number | undefined {
  let path = ""
  let pen = "M"
  let end: number | undefined
  ys.forEach((value, i) => {
    if (!Number.isFinite(value)) {
      pen = "M"
      return
    }
    const x = xOf(i).toFixed(1)
    end = yOf(value)
    path += `${pen}${x} ${end.toFixed(1)}`
    pen = "L"
    if (dots) out.append(svg("circle", { cx: x, cy: end.toFixed(1), r: i == at ? 3.5 : 2, fill: colour }))
  })
  if (path) {
    out.append(
      svg("path", { d: path, fill: "none", stroke: colour, "stroke-width": 1.8, "stroke-dasharray": dash }),
    )
  }
  return end
}

/** Names at the ends of their lines, pushed apart. */
function nameLines(out: SVGElement, ends: [y: number, line: Line][], right: number) {
  let y = TOP - 8
  for (const [end, { name, suffix, colour, dash }] of ends.sort((a, b) => a[0] - b[0])) {
    y = Math.max(end, y + 13)
    out.append(
      svg("path", {
        d: `M${right + 4} ${y}h24`,
        stroke: colour,
        "stroke-width": 2.2,
        "stroke-dasharray": dash,
      }),
      text(right + 32, y + 4, clip(name, 11 - suffix.length) + suffix, "start", "n"),
    )
  }
}
