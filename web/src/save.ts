/* From the picture back to the data: Python, CSV, a table, and the figure as SVG and PNG. */
import type { App } from "./app"
import { h, range, svg } from "./dom"
import { clip, rtl } from "./text"
import { ticks } from "./values"

/** Part of the grid: columns c0 … c1, all depths shown. */
export interface Part {
  c0: number
  c1: number
}

export function download(name: string, data: Blob) {
  const url = URL.createObjectURL(data)
  h("a", { href: url, download: name }).click()
  setTimeout(() => URL.revokeObjectURL(url), 1e4)
}

/** Python that makes the reading again and goes to the cell. */
export const asPython = (app: App, d: number, c: number) =>
  app
    .heres(d, c)
    .map(({ R, l, t }) => {
      const all = (f: (k: number) => string) => range(R.K).map(f).join(", ")
      return `${R.man.about.code}\nreading.top_ids[${l}, ${t}]  # ${all(k => R.top(l, t, k) + "")}\nreading.top_logprobs[${l}, ${t}]  # ${all(k => R.lp(l, t, k).toPrecision(4))}`
    })
    .join("\n\n")

/** One line per slot of every cell; missing values are empty. */
export function asCSV(app: App, { c0, c1 }: Part): string {
  const out: unknown[][] = [
    [
      "reading",
      "depth",
      "position",
      "input_id",
      "input",
      "rank",
      "id",
      "token",
      "logprob",
      "entropy",
      "kl",
      "next_id",
      "next_rank",
      "next_logprob",
    ],
  ]
  for (let c = c0; c < c1; c++)
    for (const d of app.shown)
      for (const { R, l, t } of app.heres(d, c))
        for (let k = 0; k < R.K; k++) {
          const id = R.top(l, t, k),
            { head } = R,
            n = head.next[t]!
          if (id >= 0)
            out.push([
              R.man.label,
              R.layers[l],
              R.at(t),
              head.ids[t],
              head.pieces[t],
              R.topRank(l, t, k),
              id,
              R.piece(id),
              R.lp(l, t, k),
              R.num("entropy", l, t),
              R.num("kl", l, t),
              n < 0 ? "" : n,
              R.rank("next_ranks", l, t),
              R.num("next_logprobs", l, t),
            ])
        }
  const cell = (v: unknown) =>
    typeof v == "number"
      ? Number.isFinite(v)
        ? String(Number.isInteger(v) ? v : +v.toPrecision(5))
        : ""
      : /[",\n\r]/.test(v as string)
        ? `"${(v as string).replace(/"/g, '""')}"`
        : v
  return out.map(row => row.map(cell).join()).join("\n") + "\n"
}

/** Real tables of a part, `per` columns each, for reading aloud, copying and printing. */
export const tables = (app: App, { c0, c1 }: Part, per: number) =>
  (app.diff ? [app.S.a] : app.panes).flatMap(r =>
    range(Math.ceil((c1 - c0) / per)).map(n => {
      const s = app.sheet(r),
        cols = range(Math.min(per, c1 - c0 - n * per), c0 + n * per)
      const th = (scope: string, ...kids: (string | Node)[]) => h("th", { scope }, kids)
      return h(
        "table.real",
        h(
          "caption",
          h("bdi", s.name),
          `: the likeliest next token, positions ${s.col(cols[0]!).position} – ${s.col(cols[cols.length - 1]!).position}`,
        ),
        h(
          "thead",
          h(
            "tr",
            th("col", "depth"),
            cols.map(c => th("col", h("small", s.col(c).position), " ", h("bdi", clip(s.col(c).text, 24)))),
          ),
        ),
        h(
          "tbody",
          range(s.nrow).map(i =>
            h(
              "tr",
              th("row", s.row(i)),
              cols.map(c => {
                const [first, second] = s.words(i, c)
                return h("td", h("bdi", clip(first, 24) || "–"), " ", h("small", second))
              }),
            ),
          ),
        ),
      )
    }),
  )

/** The grid as a figure: a part of it, with headers, a legend and where it comes from. */
export function figure(app: App, { c0, c1 }: Part, w: number): SVGElement {
  const { S, diff } = app,
    cw = Math.max(44, Math.min(120, w)),
    ch = 22,
    left = 58,
    list = diff ? [S.a] : app.panes,
    per = 78 + app.shown.length * ch
  const W = Math.max(440, left + (c1 - c0) * cw + 16),
    H = list.length * per + 72,
    black = "#1a1d21",
    grey = "#596068"
  const out = svg("svg", {
    xmlns: "http://www.w3.org/2000/svg",
    viewBox: `0 0 ${W} ${H}`,
    width: W,
    height: H,
    "font-family": "system-ui,'Segoe UI','Noto Sans',sans-serif",
    "font-size": 11.5,
  })
  const rect = (x: number, y: number, width: number, height: number, fill: string) =>
    out.append(svg("rect", { x, y, width, height, fill }))
  const text = (x: number, y: number, s: string, fill = black, anchor = "start", weight = 400) =>
    out.append(
      svg(
        "text",
        { x, y, fill, "text-anchor": anchor, "font-weight": weight },
        rtl(s) ? "\u2068" + s + "\u2069" : s,
      ),
    )
  rect(0, 0, W, H, "#fff")
  list.forEach((r, q) => {
    const s = app.sheet(r),
      y0 = q * per + 62,
      { about } = app.Rs[r]!.man
    text(12, y0 - 42, clip(s.name, Math.floor(W / 7)), black, "start", 650)
    text(12, y0 - 24, clip(`${about.model} · ${about.lens} · ${about.check}`, Math.floor(W / 6.2)), grey)
    for (let c = c0; c < c1; c++)
      text(left + (c - c0 + 0.5) * cw, y0 - 3, clip(s.col(c).text, cw / 7), black, "middle", 650)
    for (let i = 0; i < s.nrow; i++) {
      const y = y0 + 4 + i * ch,
        last = i == s.nrow - 1
      text(left - 7, y + 15, s.row(i), black, "end", last ? 650 : 400)
      for (let c = c0; c < c1; c++) {
        const v = s.shade(i, c),
          x = left + (c - c0) * cw,
          [word, , strong] = s.words(i, c)
        rect(x, y, cw - 1, ch - 1, s.scale.css[v] ?? "#eceef0")
        if (word)
          text(
            x + cw / 2,
            y + 15,
            clip(word, (cw - 6) / 6.6),
            s.scale.ink[v] ?? grey,
            "middle",
            strong ? 650 : 400,
          )
      }
      if (last) rect(left, y - 2, (c1 - c0) * cw - 1, 1.5, black)
    }
  })
  for (let i = 0; i < 64; i++) rect(left + i * 3, H - 44, 3.2, 10, app.scale.css[i * 4]!)
  for (const [s, x] of legend(app))
    text(left + x * 192, H - 20, s, grey, x < 0.1 ? "start" : x > 0.9 ? "end" : "middle")
  text(left + 204, H - 35, clip((diff ? "Difference: " : "") + app.mode.label, 60))
  return out
}

/** What stands under the colour scale: words and their places 0 … 1. */
export function legend(app: App): [string, number][] {
  const { mode } = app,
    v = app.diff && app.reach(),
    sign =
      v && mode.log
        ? (x: number) => "×" + +(10 ** x).toPrecision(2)
        : (x: number) => (x > 0 ? "+" : "") + +x.toPrecision(2)
  return v
    ? [-1, 0, 1].map(x => [x ? sign(x * v) : "same", (x + 1) / 2])
    : app.S.color == "agree"
      ? [
          ["other token", 0],
          ["same token", 1],
        ]
      : ticks(mode, ...app.domain())
}

/** The figure as pixels, twice as fine as on the screen. */
export async function png(figure: SVGElement): Promise<Blob | null> {
  const W = +figure.getAttribute("width")!,
    H = +figure.getAttribute("height")!,
    k = Math.min(2, 16e3 / Math.max(W, H)),
    image = new Image()
  image.src = "data:image/svg+xml," + encodeURIComponent(figure.outerHTML)
  await image.decode()
  const canvas = h("canvas", { width: Math.round(W * k), height: Math.round(H * k) })
  canvas.getContext("2d")!.drawImage(image, 0, 0, canvas.width, canvas.height)
  return new Promise(done => canvas.toBlob(done))
}
