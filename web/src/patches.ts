/* Answers that are no readings: who wrote a token, and which patches bring an answer back. */
import { scale } from "./colour"
import { h } from "./dom"
import { clip, number, visible } from "./text"

export interface Attribution {
  token: string
  versus?: string | null
  parts: [name: string, value: number][]
  rest: number
  others: number
  sum: number
  logit: number
  difference: number
}

export interface PatchGrid {
  layers: string[]
  pieces: string[]
  clean_pieces: string[]
  /** null: the two prompts do not differ, so there is no share */
  restored: (number | null)[][]
  token: string
  versus: string | null
  clean: { logit: number; logprob: number }
  corrupted: { logit: number; logprob: number }
}

const answer = (pieces: (string | null | undefined)[]) =>
  h(
    "bdi",
    pieces
      .flatMap(piece => piece ?? [])
      .map(piece => visible(clip(piece, 30)))
      .join(" − "),
  )
const signed = (value: number) => (value > 0 ? "+" : "") + number(value, 3)

/** The largest components of a logit as bars, and what they all sum to. */
export function components(found: Attribution): HTMLElement {
  const { token, versus, parts, rest, others, sum, logit, difference } = found
  const widest = Math.max(...parts.map(([, value]) => Math.abs(value)), 1e-9)
  const row = (name: string, value: number) => {
    const width = `width:${(100 * Math.abs(value)) / widest}%`
    return h(
      "tr",
      h("th", name),
      h("td", h(value < 0 ? "i.less" : "i", { style: width })),
      h("td", signed(value)),
    )
  }
  return h(
    "div.who",
    h("b", "Who wrote ", answer([token, versus]), "?"),
    h(
      "table",
      parts.map(([name, value]) => row(name, value)),
      others > 0 && h("tr", h("th", `${others} more`), h("td"), h("td", signed(rest))),
      h("tr", h("th", "sum"), h("td"), h("td", number(sum, 4))),
    ),
    h(
      "p.note",
      `The model’s own logit is ${number(logit, 5)}: within ${Math.abs(difference).toExponential(0)}.`,
    ),
  )
}

/** Layers down, positions across; how much of the clean answer each patch brings back. */
export function heatmap(grid: PatchGrid): HTMLElement {
  const { css, ink } = scale("light")
  const answer = [grid.token, grid.versus].filter(piece => piece != null).map(piece => visible(piece!))
  // 0 is the middle of the scale, 1 and −1 its ends
  const shade = (value: number) => Math.max(0, Math.min(255, Math.round(127.5 + 127.5 * value)))
  const head = grid.pieces.map((piece, t) => {
    const both = [grid.clean_pieces[t]!, piece].map(each => visible(clip(each, 12)))
    return h("th", { scope: "col" }, h("bdi", [...new Set(both)].join(" / ")))
  })
  return h(
    "div.scroll.patches",
    { tabindex: 0, role: "region", "aria-label": "Patches" },
    h(
      "table.real",
      h(
        "caption",
        `How much of the logit of ${answer.join(" − ")} each cell of the clean run brings back, `,
        `in percent: ${number(grid.corrupted.logit, 3)} as corrupted, ${number(grid.clean.logit, 3)} as clean`,
      ),
      h("thead", h("tr", h("th", { scope: "col" }, "layer"), head)),
      h(
        "tbody",
        grid.layers
          .map((layer, l) => {
            const cells = grid.restored[l]!.map(value => {
              if (value == null) return h("td", "–")
              const i = shade(value)
              return h(
                "td",
                { style: `background:${css[i]};color:${ink[i]}` },
                String(Math.round(100 * value)),
              )
            })
            return h("tr", h("th", { scope: "row" }, layer), cells)
          })
          .reverse(),
      ),
    ),
  )
}
