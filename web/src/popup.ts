/* The card of a cell: top-k with bars, the statistics, the next and the followed tokens. */
import type { App, Here } from "./app"
import { LINES } from "./colour"
import { h, range } from "./dom"
import { clip, count, hex, num, prob, repair, visible } from "./text"
import { settled } from "./values"

export class Popup {
  el = h("div.pop", { hidden: true })
  locked = false
  private key = ""

  constructor(
    private app: App,
    private copy: (what: string) => void,
    private close: () => void,
  ) {
    this.el.onkeydown = e => {
      const all = [...this.el.querySelectorAll("button")],
        step = { ArrowDown: 1, ArrowUp: -1 }[e.key]
      if (!step) return
      e.preventDefault()
      all[(all.indexOf(e.target as HTMLButtonElement) + step + all.length) % all.length]?.focus()
    }
  }

  hide() {
    this.el.hidden = true
    this.locked = false
    this.key = ""
  }

  /** Show the card of a cell beside its place on the screen. */
  show(d: number, c: number, near: DOMRect, lock: boolean) {
    const { app, el } = this,
      key = JSON.stringify([d, c, lock, app.S])
    this.locked = lock
    if (key != this.key) {
      // a held card keeps the button in hand
      const held = [...el.querySelectorAll("button")].indexOf(document.activeElement as HTMLButtonElement)
      this.key = key
      el.classList.toggle("lock", lock)
      el.replaceChildren(
        h(
          "div.blocks",
          app.panes.map(r =>
            h("section", app.Rs[1] && h("b.who", app.Rs[r]!.man.label), this.block(app.here(r, d, c), lock)),
          ),
        ),
        lock
          ? h(
              "div.acts",
              h("button", { onclick: () => this.copy("text") }, "Copy text"),
              h("button", { onclick: () => this.copy("python") }, "Copy Python"),
              h("button", { onclick: this.close }, "Close"),
            )
          : h("div.hint", "click holds this · P pins"),
      )
      if (held >= 0) el.querySelectorAll("button")[held]?.focus()
    }
    el.hidden = false
    // beside the cell, so that its row and column stay in sight
    const W = el.offsetWidth,
      left = near.left - 10 - W
    el.style.left =
      (near.right + 10 + W < innerWidth
        ? near.right + 10
        : left > 0
          ? left
          : Math.max(4, innerWidth - W - 4)) + "px"
    el.style.top = Math.max(4, Math.min(near.top - 12, innerHeight - el.offsetHeight - 6)) + "px"
  }

  private block(at: Here | null, lock: boolean) {
    if (!at) return "no such cell"
    const { app } = this,
      { R, l, t } = at,
      next = R.head.next[t]!,
      e = R.num("entropy", l, t)
    if (!R.ready(t)) return "…"
    const line = (name: string, what: unknown, v?: { rank: number; lp: number }) =>
      h(
        "tr",
        h("th", name),
        h("td", { colspan: v ? 1 : 3 }, what as Node),
        v && [h("td", v.rank == Infinity ? "> " + R.K : "#" + count(v.rank)), h("td", prob(v.lp))],
      )
    return [
      h(
        "div.at",
        h("b", "depth " + R.layers[l]),
        l == R.L - 1 && " (the model’s own output)",
        ` · position ${R.at(t)} · after `,
        token(at, R.head.ids[t]!, R.head.pieces[t]),
      ),
      h(
        "table.top",
        range(R.K).map(k => {
          const id = R.top(l, t, k),
            lp = R.lp(l, t, k),
            on = app.pinned(R, id) >= 0
          return (
            id >= 0 &&
            h(
              id == R.top(R.L - 1, t) ? "tr.final" : "tr",
              h("th", R.topRank(l, t, k)),
              h("td.w", h("i.bar", { style: `width:${100 * Math.exp(lp - R.lp(l, t))}%` }), token(at, id)),
              h("td", { title: "id " + id }, prob(lp)),
              h("td.lp", num(lp)),
              lock &&
                h(
                  "td",
                  h(
                    "button.pin",
                    {
                      "aria-pressed": String(on),
                      "aria-label": "Pin " + visible(clip(R.piece(id), 30)),
                      title: "Shift: add to the last group",
                      onclick: (e: MouseEvent) => app.pin(R, id, e.shiftKey),
                    },
                    on ? "pinned" : "pin",
                  ),
                ),
            )
          )
        }),
      ),
      h(
        "table.stats",
        line("entropy", `${num(e)} nats (${num(e / Math.LN2)} bits)`),
        line("KL to final", num(R.num("kl", l, t)) + " nats"),
        next < 0
          ? line("next token", "none follows")
          : line("next token", token(at, next), R.token(l, t, next)),
        line("settled", "from depth " + R.layers[settled(R, t)]),
        R.head.track.map(id => app.pinned(R, id) < 0 && line("tracked", token(at, id), R.token(l, t, id))),
        app.S.pins.map((p, i) => line("pinned", h("bdi", dot(i), clip(app.name(p), 24)), app.follow(at, p))),
      ),
    ]
  }
}

export const dot = (i: number) => h("i.dot", { style: "background:" + LINES[i % LINES.length] })

/** A token on the page: isolated direction, visible whitespace, bytes of a fragment with its glyph. */
function token({ R, t }: Here, id: number, piece?: string) {
  const bytes = R.bytes.get(id),
    text = piece ?? R.piece(id)
  const glyph =
    bytes &&
    repair(
      range(4, t - 3).flatMap(i => R.bytes.get(R.head.ids[i]!) ?? []),
      bytes,
    )
  return h(
    "span",
    { title: text.length > 60 && text.length + " characters" },
    h(R.special.has(id) ? "bdi.special" : "bdi", visible(clip(text, 60))),
    bytes && piece == null && h("small", ` bytes ${hex(bytes)}`, glyph && ` → ${glyph}`),
  )
}
