/* The state of a page and what follows from it; the parts of the page read and change it here. */
import { scale, type Scale } from "./colour"
import { range } from "./dom"
import type { Frame, Reading } from "./format"
import type { Sheet } from "./grid"
import { clip, count, num, prob, visible } from "./text"
import { MODES, final, follow, pinModes, settled, type Mode, type Pin } from "./values"

export interface State {
  color: string
  text: string
  map: string
  /** size of a cell; 0: what suits the reading */
  w: number
  h: number
  /** one, side or diff */
  view: string
  a: number
  b: number
  from: number
  to: number
  step: number
  /** the chosen cell: [index of its depth label, column], or [] */
  cell: number[]
  pins: Pin[]
  /** pinned columns */
  pos: number[]
  q: string
}

export interface Here {
  R: Reading
  l: number
  t: number
}

export class App {
  labels: string[]
  /** per reading: position of every column, depth row of every label; -1 for none */
  cols: number[][]
  rows: number[][]
  /** depths shown, as indices into labels */
  shown: number[] = []
  /** per reading: ids that the search found */
  found: Set<number>[] = []
  /** per reading: positions of the prompt that the search found, also across tokens */
  places: Set<number>[] = []
  dark = false
  S: State
  readonly start: State
  /** called after every change of state */
  changed: (patch: Partial<State>) => void = () => {}
  private reaches: Record<string, number> = {}
  private names: Record<string, number[]> = {}

  constructor(
    public Rs: Reading[],
    frame: Frame | null,
    hash: string,
  ) {
    const [R] = Rs as [Reading]
    this.labels = frame?.labels ?? R.layers
    this.cols = frame
      ? frame.cols.map(runs => runs.flatMap(([p, n]) => (p! < 0 ? Array<number>(n!).fill(-1) : range(n!, p))))
      : [range(R.T)]
    this.rows = frame?.rows ?? [range(R.L)]
    // readings of one tokenizer name each other's ids
    for (const Q of Rs) {
      const P = Rs[this.home(Q)]!
      Q.vocab.forEach((piece, id) => P.vocab.set(id, piece))
      Q.vocab = P.vocab
    }
    this.start = {
      color: "prob",
      text: "token",
      map: "cividis",
      w: 0,
      h: 0,
      view: Rs[1] ? "side" : "one",
      a: 0,
      b: +!!Rs[1],
      from: 0,
      to: this.labels.length - 1,
      step: 1,
      cell: [],
      pins: [],
      pos: [],
      q: "",
    }
    this.S = { ...this.start, ...this.parse(hash) }
    this.derive()
  }

  /** The state as it stands in an address: what differs from the start. */
  get hash(): string {
    const text = (v: unknown) => (typeof v == "string" ? v : JSON.stringify(v)),
      { S, start } = this as any
    return Object.keys(S)
      .filter(k => text(S[k]) != text(start[k]))
      .map(k => k + "=" + encodeURIComponent(text(S[k])).replace(/%(5B|5D|2C)/g, decodeURIComponent))
      .join("&")
  }
  parse(hash: string): Partial<State> {
    const out: any = {}
    new URLSearchParams(hash.replace(/^#/, "")).forEach((v, k) => {
      const was = (this.start as any)[k]
      try {
        // a foreign address must not break the page: kinds are checked, ranges in derive()
        const now = typeof was == "string" ? v : JSON.parse(v)
        if (
          typeof now == typeof was &&
          [now].flat(9).every(x => typeof was == "string" || Number.isFinite(x)) &&
          Array.isArray(now) == Array.isArray(was)
        )
          out[k] = now
      } catch {
        /* not a value of ours */
      }
    })
    return out
  }

  set(patch: Partial<State>) {
    Object.assign(this.S, patch)
    this.derive()
    this.changed(patch)
  }

  private derive() {
    const { S, Rs, ncol } = this,
      max = this.labels.length - 1,
      within = (v: number, lo: number, hi: number) => Math.max(lo, Math.min(hi, Math.round(v)))
    S.from = within(S.from, 0, max)
    S.to = within(S.to, S.from, max)
    S.step = within(S.step, 1, max + 1)
    S.w = within(S.w, 0, 400)
    S.h = within(S.h, 0, 120)
    S.a = within(S.a, 0, Rs.length - 1)
    S.b = within(S.b, 0, Rs.length - 1)
    if (!Rs[1]) S.view = "one"
    // the model's own row is always there to compare with
    this.shown = range(max + 1).filter(
      d => d == max || (d >= S.from && d <= S.to && (d - S.from) % S.step == 0),
    )
    S.pos = S.pos.filter(c => c >= 0 && c < ncol)
    S.pins = S.pins.filter(p => Rs[p[0]!] && p.length > 1)
    if (!(S.cell[0]! >= 0 && S.cell[0]! <= max && S.cell[1]! >= 0 && S.cell[1]! < ncol)) S.cell = []
    const q = S.q.toLowerCase()
    this.found = Rs.map(
      R =>
        new Set(
          q
            ? [...R.vocab]
                .filter(([, p]) => (p + "\0" + visible(p)).toLowerCase().includes(q))
                .map(([id]) => id)
            : [],
        ),
    )
    this.places = Rs.map(({ head: { pieces } }) => {
      const owner = pieces.flatMap((p, t) => Array<number>(p.length).fill(t)),
        text = pieces.join("").toLowerCase(),
        out = new Set<number>()
      if (q)
        for (let i = -1; (i = text.indexOf(q, i + 1)) >= 0;)
          for (const t of owner.slice(i, i + q.length)) out.add(t)
      return out
    })
    if (!this.modes[S.color]) S.color = "prob"
  }

  get ncol() {
    return this.cols[0]!.length
  }
  get A() {
    return this.Rs[this.S.a]!
  }
  /** The readings in view, as indices. */
  get panes() {
    const { view, a, b } = this.S
    return view == "one" ? [a] : view == "diff" ? [a, b] : range(this.Rs.length)
  }
  /** All ways to colour: the statistics, then two for each pin. */
  get modes(): Record<string, Mode> {
    const out = { ...MODES }
    this.S.pins.forEach((p, i) =>
      pinModes("“" + clip(this.name(p), 30) + "”", (R, l, t) => this.follow({ R, l, t }, p)).forEach(
        (m, j) => (out[(j ? "pinrank" : "pin") + i] = m),
      ),
    )
    return out
  }
  get mode() {
    return this.modes[this.S.color]!
  }
  get diff() {
    return this.S.view == "diff"
  }
  get scale(): Scale {
    return scale(this.diff ? (this.dark ? "dark" : "light") : this.S.map)
  }
  /** A cell of one reading, or null where it has none. */
  here(r: number, d: number, c: number): Here | null {
    const l = this.rows[r]![d] ?? -1,
      t = this.cols[r]![c] ?? -1
    return l < 0 || t < 0 ? null : { R: this.Rs[r]!, l, t }
  }
  /** The cells of the readings in view at one place. */
  heres(d: number, c: number): Here[] {
    return this.panes.flatMap(r => this.here(r, d, c) ?? [])
  }
  /** One scale for all readings in view, so that the same colour means the same. */
  domain(): [number, number] {
    const all = this.panes.map(r => this.mode.dom(this.Rs[r]!)),
      most = (i: 0 | 1, f: (...v: number[]) => number) => f(...all.map(d => d[i]))
    return all[0]![0] > all[0]![1]
      ? [most(0, Math.max), most(1, Math.min)]
      : [most(0, Math.min), most(1, Math.max)]
  }
  /** The scale's measure of a cell: NaN missing, ±Infinity beyond the scale. */
  private measure(at: Here | null, m: Mode): number {
    const v = at ? m.val(at.R, at.l, at.t) : NaN
    return m.log ? Math.log10(v) : v
  }
  delta(d: number, c: number, m = this.mode): number {
    const v = this.measure(this.here(this.S.b, d, c), m) - this.measure(this.here(this.S.a, d, c), m)
    return Number.isFinite(v) ? v : NaN
  }
  /** The largest difference (99th percentile of a sample), for a scale that is even around 0. */
  reach(): number {
    const { S, ncol, shown, mode } = this,
      key = [S.color, S.a, S.b, S.pins].join(),
      step = Math.ceil(ncol / 400)
    const out = range(Math.ceil(ncol / step))
      .flatMap(c => (this.reaches[key] ? [] : shown.map(d => Math.abs(this.delta(d, c * step, mode)))))
      .filter(v => v >= 0)
      .sort((x, y) => x - y)
    return (this.reaches[key] ||= out[Math.floor(out.length * 0.99)] ?? 0) || 1
  }
  /** Tiles have arrived: what was measured on fewer is measured anew. */
  arrived() {
    this.reaches = {}
  }

  /** The sheet a grid draws: one reading, or the difference of two. */
  sheet(r: number): Sheet {
    const { S, shown, ncol, cols, Rs, mode, diff } = this,
      of = diff ? [S.a, S.b] : [r]
    const reach = diff ? this.reach() : 1,
      [lo, hi] = diff ? [-reach, reach] : this.domain()
    const tell = (p: Here | null) => (p ? visible(p.R.piece(p.R.top(p.l, p.t))) : "")
    return {
      name: diff ? `${Rs[S.b]!.man.label} − ${Rs[S.a]!.man.label}` : Rs[r]!.man.label,
      nrow: shown.length,
      ncol,
      scale: this.scale,
      need: (c0, c1) =>
        of.forEach(q =>
          range(c1 - c0, c0).forEach(c => {
            if (cols[q]![c]! >= 0) Rs[q]!.load(cols[q]![c]!)
          }),
        ),
      shade: (i, c) => {
        const v = diff ? this.delta(shown[i]!, c, mode) : this.measure(this.here(r, shown[i]!, c), mode)
        if (!Number.isNaN(v))
          return Math.abs(v) == Infinity
            ? 0
            : Math.max(0, Math.min(255, Math.round((255 * (v - lo)) / (hi - lo || 1))))
        return of.every(q => {
          const p = this.here(q, shown[i]!, c)
          return !p || p.R.ready(p.t)
        })
          ? -1
          : -2
      },
      words: (i, c) => {
        const [p, q] = of.map(x => this.here(x, shown[i]!, c)),
          a = tell(p!)
        if (S.text == "none") return ["", "", false]
        let value,
          word = a,
          strong
        if (diff) {
          const v = this.delta(shown[i]!, c, mode),
            b = tell(q!)
          value = (v > 0 ? "+" : "") + num(v, 2)
          strong = !!a && !!b && a != b
          word = strong ? clip(a, 8) + " → " + b : a || b
        } else {
          value = p ? mode.fmt(mode.val(p.R, p.l, p.t)).replace(" nats", "") : ""
          strong = !!p && p.R.top(p.l, p.t) == final(p.R, p.t)
        }
        return S.text == "value" ? [value, "", strong] : [p || q ? word : "", value, strong]
      },
      mark: (i, c) =>
        !!S.q &&
        of.some(q => {
          const p = this.here(q, shown[i]!, c)
          return p && p.R.slot(p.l, p.t, id => this.found[q]!.has(id)) >= 0
        }),
      row: i => this.labels[shown[i]!]!,
      col: c => {
        const has = of.filter(x => cols[x]![c]! >= 0),
          q = has[0] ?? r,
          R = Rs[q]!,
          t = cols[q]![c]!
        const text = [...new Set(has.map(x => visible(clip(Rs[x]!.head.pieces[cols[x]![c]!]!, 200))))].join(
          " / ",
        )
        return {
          text,
          position: t < 0 ? "" : String(R.at(t)),
          special: R.special.has(R.head.ids[t]!),
          pinned: S.pos.includes(c),
        }
      },
      speak: (i, c) => this.sentence(shown[i]!, c),
    }
  }

  /** A cell in words, for the live region. */
  sentence(d: number, c: number): string {
    const { mode } = this
    return (
      this.heres(d, c)
        .map(
          ({ R, l, t }) =>
            `${this.Rs[1] ? R.man.label + ": " : ""}depth ${R.layers[l]}, position ${R.at(t)}, after ${visible(clip(R.head.pieces[t]!, 40))}: ${visible(clip(R.piece(R.top(l, t)), 40))}, ${prob(R.lp(l, t))}; ${mode.label.toLowerCase()} ${mode.fmt(mode.val(R, l, t))}`,
        )
        .join(". ") || "no such cell"
    )
  }

  /** The reading whose ids stand for those of R: the first of the same tokenizer. */
  home(R: Reading) {
    return this.Rs.findIndex(Q => Q.man.vocabulary == R.man.vocabulary)
  }
  name([r, ...ids]: Pin) {
    return ids.map(id => visible(clip(this.Rs[r!]!.piece(id), 40))).join(" + ")
  }
  /** Whether a token is pinned, as the index of its pin. */
  pinned(R: Reading, id: number) {
    return this.S.pins.findIndex(([r, ...ids]) => r == this.home(R) && ids.includes(id))
  }
  /** Pin a token, or let it go; `join` adds it to the last group. */
  pin(R: Reading, id: number, join = false) {
    const r = this.home(R),
      at = this.pinned(R, id),
      pins = this.S.pins.map(p => [...p]),
      last = pins[pins.length - 1]
    if (id < 0) return
    if (at >= 0) pins[at] = [r, ...pins[at]!.slice(1).filter(x => x != id)]
    else if (join && last?.[0] == r) last.push(id)
    else pins.push([r, id])
    this.set({ pins })
  }
  /** What a reading says about a pin; another tokenizer's ids are found by their text. */
  follow({ R, l, t }: Here, [r, ...ids]: Pin) {
    const to = this.home(R)
    return follow(
      R,
      l,
      t,
      to == r
        ? ids
        : (this.names[[to, r, ids].join()] ??= [...R.vocab]
            .filter(([, p]) => ids.some(id => this.Rs[r!]!.piece(id) == p))
            .map(([id]) => id)),
    )
  }

  /** Lines of text for one cell. */
  asText(d: number, c: number): string {
    return this.heres(d, c)
      .map(({ R, l, t }) => {
        const n = R.head.next[t]!
        return (
          `${R.man.label} · ${R.man.about.lens} · depth ${R.layers[l]} · position ${R.at(t)}, after ${JSON.stringify(R.head.pieces[t])}\n` +
          range(R.K)
            .filter(k => R.top(l, t, k) >= 0)
            .map(
              k =>
                `${R.topRank(l, t, k)}\t${prob(R.lp(l, t, k))}\t${JSON.stringify(R.piece(R.top(l, t, k)))}\t(id ${R.top(l, t, k)})\n`,
            )
            .join("") +
          `entropy ${num(R.num("entropy", l, t))} nats · KL to the final row ${num(R.num("kl", l, t))} nats · settled from depth ${R.layers[settled(R, t)]}` +
          (n < 0
            ? ""
            : `\nnext token ${JSON.stringify(R.piece(n))}: rank ${count(R.rank("next_ranks", l, t))}, ${prob(R.num("next_logprobs", l, t))}`)
        )
      })
      .join("\n\n")
  }
}
