/* Under the grid: what is followed, as chips, and its trajectories over depth and over positions. */
import type { App } from "./app"
import { chart, type Line, type Plot } from "./chart"
import { DASHES, LINES } from "./colour"
import { h, range } from "./dom"
import { dot } from "./popup"
import { clip, visible } from "./text"
import { candidates, type Pin } from "./values"

/** What the charts follow: pins, or the tokens that were top at any depth of the current column. */
function followed(app: App, c: number): Pin[] {
  const { panes, S } = app,
    each = panes.map(r => {
      const t = app.cols[r]![c]!,
        R = app.Rs[r]!
      return t < 0 ? [] : candidates(R, t).map(id => [app.home(R), id])
    })
  // of several readings in turn: first what each ends with
  const turn = range(6).flatMap(n => each.flatMap(list => (list[n] ? [list[n]!] : [])))
  return S.pins[0]
    ? S.pins
    : turn.filter((p, i) => turn.findIndex(q => q + "" == p + "") == i).slice(0, 12 / panes.length)
}

/** The three charts, as data. */
export function plots(
  app: App,
  d: number,
  c: number,
  width: number,
  go?: (d: number, c: number) => void,
): Plot[] {
  const { S, shown, labels, panes, A } = app,
    cols = app.cols[S.a]!,
    pins = followed(app, c),
    columns = [...new Set([...S.pos, c])].slice(S.pos[0] == null ? 0 : -5)
  const lo = Math.max(0, Math.min(c - 60, app.ncol - 121)),
    near = range(Math.min(app.ncol, 121), lo)
  const lines = (of: number[], cells: [number, number][], kind: "lp" | "rank", at: number): Line[] =>
    pins.flatMap((pin, i) =>
      panes.flatMap((r, q) =>
        of.map((col, n) => ({
          name: clip(app.name(pin), 20),
          tail: (of[1] != null ? " @" + cols[col] : "") + (panes[1] != null ? " " + "ABCDEFGH"[r] : ""),
          colour: LINES[i % LINES.length]!,
          dash: DASHES[(q + n * panes.length) % DASHES.length]!,
          ys: cells.map(([y, x]) => {
            const p = app.here(r, y, at < 0 ? col : x),
              v = p && app.follow(p, pin)
            return v && v.rank != Infinity ? v[kind] : NaN
          }),
        })),
      ),
    )
  const down = shown.map(y => [y, c] as [number, number]),
    t = cols[c]!
  const where =
    columns[1] != null
      ? "at the pinned positions"
      : t < 0
        ? ""
        : `after “${visible(clip(A.head.pieces[t]!, 12))}” (${A.at(t)})`
  const over = {
    width,
    xs: shown.map(y => labels[y]!),
    at: shown.indexOf(d),
    xlabel: "depth",
    pick: go && ((x: number) => go(shown[x]!, c)),
  }
  return [
    { ...over, title: "Probability over depth " + where, lines: lines(columns, down, "lp", -1) },
    { ...over, title: "Rank over depth " + where, ranked: true, lines: lines(columns, down, "rank", -1) },
    {
      width,
      title: "Probability over positions at depth " + labels[d],
      xs: near.map(x =>
        cols[x]! < 0 ? "" : near.length > 16 ? String(A.at(cols[x]!)) : A.head.pieces[cols[x]!]!,
      ),
      at: c - lo,
      xlabel: "position",
      pick: go && (x => go(d, lo + x)),
      lines: lines(
        [c],
        near.map(x => [d, x]),
        "lp",
        0,
      ),
    },
  ]
}

export class Panel {
  private chips = h("div.chips")
  private charts = h("div.charts")
  el = h("section.panel", { "aria-label": "Trajectories" }, this.chips, this.charts)

  constructor(
    private app: App,
    private go: (d: number, c: number) => void,
  ) {}

  draw(d: number, c: number) {
    const { app, charts } = this,
      { pins, pos } = app.S,
      list = followed(app, c),
      link = (text: string, onclick: () => void) => h("button.link", { onclick }, text)
    const chip = (text: string, sign: string, act: string, f: () => void, i = -1) =>
      h(
        "span.chip",
        i >= 0 && dot(i),
        h("bdi", text),
        h("button", { "aria-label": `${act} ${text}`, title: act, onclick: f }, sign),
      )
    this.chips.replaceChildren(
      ...([
        h("span.lab", pins[0] ? "Pinned" : "Top at any depth here"),
        list.map((p, i) =>
          chip(
            clip(app.name(p), 28),
            pins[0] ? "×" : "+",
            pins[0] ? "Remove" : "Pin",
            () => app.set({ pins: pins[0] ? pins.filter(x => x != p) : [p] }),
            i,
          ),
        ),
        pins[1] &&
          link("group", () =>
            app.set({
              pins: range(app.Rs.length).map(r => [
                r,
                ...pins.filter(p => p[0] == r).flatMap(p => p.slice(1)),
              ]),
            }),
          ),
        pins.some(p => p[2] != null) &&
          link("ungroup", () => app.set({ pins: pins.flatMap(([r, ...ids]) => ids.map(id => [r!, id])) })),
        pins[0] && link("clear", () => app.set({ pins: [] })),
        pos[0] != null && h("span.lab", "Positions"),
        pos.map(p =>
          chip(
            `${app.cols[app.S.a]![p]} ${visible(clip(app.A.head.pieces[app.cols[app.S.a]![p]!] ?? "", 16))}`,
            "×",
            "Remove",
            () => app.set({ pos: pos.filter(x => x != p) }),
          ),
        ),
      ]
        .flat()
        .filter(Boolean) as Node[]),
    )
    const wide = charts.clientWidth || 900,
      per = wide > 940 ? 3 : wide > 620 ? 2 : 1
    charts.replaceChildren(...plots(app, d, c, Math.floor((wide - 12 * (per - 1)) / per), this.go).map(chart))
    if (list.some(([, ...ids]) => ids.some(id => !app.A.head.track.includes(id))))
      charts.append(
        h(
          "p.note",
          `Gaps: not among the top ${app.A.K} there, so not recorded. Tracked tokens are exact everywhere.`,
        ),
      )
  }
}
