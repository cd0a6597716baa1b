/* The head of the page and its controls: native elements, so that keyboards and readers know them. */
import type { App, State } from "./app"
import { h } from "./dom"
import { legend } from "./save"
import { clip, visible } from "./text"

interface Acts {
  zoom(f: number): void
  fit(): void
  copy(what: string): void
  save(what: string): void
  table(): void
  find(step: number): void
}

const KEYS = {
  "← ↑ → ↓": "move",
  "Home End": "first, last (Ctrl: corner)",
  "PgUp PgDn": "a page (Shift: sideways)",
  "Enter Esc": "hold the card, let go",
  P: "pin the first token",
  F: "pin the final token",
  "Shift P": "pin the position",
  M: "next colour",
  V: "next view",
  C: "copy the cell (Shift: Python)",
  "/": "search; N: next place",
  T: "table",
  "+ − 0": "zoom, fit",
}
const letter = (r: number) => "ABCDEFGH"[r] ?? String(r)

export class Tools {
  head: HTMLElement
  bar: HTMLElement
  help: HTMLDialogElement
  tableBox = h("dialog.wide", { "aria-label": "Table" })
  search = h("input", {
    type: "search",
    placeholder: "Token or position",
    "aria-label": "Search tokens or a position",
  })
  private results = h("div.results", { hidden: true })
  private bind: (() => void)[] = []
  private key = h("div.legend")
  private about = h("div.about")
  private wait?: ReturnType<typeof setTimeout>

  constructor(
    private app: App,
    title: string,
    readonly acts: Acts,
  ) {
    const { Rs, labels } = app,
      { search, results } = this
    const button = (text: string, label: string, onclick: () => void) =>
      h("button", { title: label, "aria-label": label, onclick }, text)
    // a control that follows a part of the state and is hidden where `when` says so
    const select = (
      label: string,
      key: keyof State,
      options: () => [string | number, string][],
      when = () => true,
    ) => {
      const e = h("select", {
          "aria-label": label,
          onchange: () => app.set({ [key]: typeof app.start[key] == "number" ? +e.value : e.value }),
        }),
        box = h("label", h("span", label), e)
      let was = ""
      this.bind.push(() => {
        const list = options()
        if (was != (was = list.join()))
          e.replaceChildren(...list.map(([value, t]) => h("option", { value }, t)))
        e.value = String(app.S[key])
        box.hidden = !when()
      })
      return box
    }
    const menu = (cls: "div" | "div.form", text: string, ...items: Node[]) => {
      const d: HTMLDetailsElement = h(
        "details",
        {
          onfocusout: (e: FocusEvent) => {
            if (e.relatedTarget && !d.contains(e.relatedTarget as Node)) d.open = false
          },
          onkeydown: (e: KeyboardEvent) => {
            if (e.key == "Escape") d.open = false
          },
        },
        h("summary", text),
        h(cls, items),
      )
      return d
    }
    const item = (text: string, f: (what: string) => void, what: string) =>
      h(
        "button",
        {
          onclick: (e: Event) => {
            f(what)
            ;(e.target as Element).closest("details")!.open = false
          },
        },
        text,
      )
    const depths = () => labels.map((d, i) => [i, d] as [number, string]),
      readings = () => Rs.map((R, r) => [r, letter(r) + " · " + clip(R.man.label, 40)] as [number, string])

    this.head = h(
      "header",
      h(
        "div.line",
        h("h1", h("bdi", clip(title, 160))),
        h("button.round", { "aria-label": "Help", onclick: () => this.help.showModal() }, "?"),
      ),
      this.about,
    )
    search.oninput = () => {
      clearTimeout(this.wait)
      this.wait = setTimeout(() => {
        app.set({ q: search.value })
        this.list()
      }, 120)
    }
    search.onkeydown = e => {
      if (e.key == "Enter") (app.set({ q: search.value }), acts.find(e.shiftKey ? -1 : 1))
      if (e.key == "Escape") ((search.value = ""), app.set({ q: "" }), (results.hidden = true))
    }
    const find: HTMLElement = h(
      "div.find",
      {
        role: "search",
        onfocusout: (e: FocusEvent) => {
          if (!find.contains(e.relatedTarget as Node)) results.hidden = true
        },
      },
      search,
      button("↑", "Previous place", () => acts.find(-1)),
      button("↓", "Next place", () => acts.find(1)),
      results,
    )

    this.bar = h(
      "div.tools",
      { role: "group", "aria-label": "View" },
      select(
        "View",
        "view",
        () => [
          ["one", "one reading"],
          ["side", "side by side"],
          ["diff", "difference"],
        ],
        () => !!Rs[1],
      ),
      select("A", "a", readings, () => !!Rs[1] && app.S.view != "side"),
      select("B", "b", readings, () => app.diff),
      select("Colour", "color", () => Object.entries(app.modes).map(([k, m]) => [k, m.label])),
      this.key,
      select("Cells", "text", () => [
        ["token", "tokens"],
        ["value", "values"],
        ["none", "colour only"],
      ]),
      menu(
        "div.form",
        "Depths",
        select("from", "from", depths),
        select("to", "to", depths),
        select("every", "step", () => [1, 2, 3, 4, 6, 8, 12].map(n => [n, String(n)])),
        select("scale", "map", () => [
          ["cividis", "cividis"],
          ["viridis", "viridis"],
        ]),
      ),
      h(
        "span.group",
        button("−", "Smaller cells", () => acts.zoom(0.8)),
        h("button", { onclick: acts.fit }, "Fit"),
        button("+", "Larger cells", () => acts.zoom(1.25)),
      ),
      find,
      h(
        "span.end",
        menu(
          "div",
          "Copy",
          item("Cell as text", acts.copy, "text"),
          item("Cell as Python", acts.copy, "python"),
          item("Cells in view as CSV", acts.copy, "csv"),
          item("Link to this view", acts.copy, "link"),
        ),
        menu(
          "div",
          "Save",
          item("PNG", acts.save, "png"),
          item("SVG", acts.save, "svg"),
          item("CSV, all of it", acts.save, "csv"),
        ),
        h("button", { onclick: acts.table }, "Table"),
      ),
    )

    this.help = h(
      "dialog",
      { "aria-label": "Help" },
      h("form", { method: "dialog" }, h("button", "Close")),
      h("h2", "What am I looking at?"),
      Rs.map((R, r) => [
        Rs[1] && h("h3", letter(r) + " · " + clip(R.man.label, 80)),
        R.man.about.text.map(s => h("p", s)),
      ]),
      h("p", "Bold: agrees with the last row. Hatched: missing, no value to show."),
      h("h2", "Keys"),
      h(
        "dl",
        Object.entries(KEYS).map(([k, v]) => [h("dt", h("kbd", k)), h("dd", v)]),
      ),
      h("h2", "Where it comes from"),
      h(
        "pre",
        { tabindex: 0, "aria-label": "Provenance" },
        JSON.stringify(
          Rs.map(R => R.man.meta),
          null,
          1,
        ),
      ),
    )
  }

  /** Tokens that match the search, to pin. */
  private list() {
    const { app, results } = this,
      { a, q } = app.S,
      { A } = app,
      found = app.found[a]!
    results.hidden = !q || /^\d+$/.test(q)
    results.replaceChildren(
      h("p", found.size ? `${found.size} tokens match; choose one to pin it` : "no recorded token"),
      ...[...found]
        .sort((x, y) => A.piece(x).length - A.piece(y).length)
        .slice(0, 8)
        .map(id =>
          h(
            "button",
            { onclick: () => app.pin(A, id) },
            h("bdi", visible(clip(A.piece(id), 40))),
            h("small", " " + id),
          ),
        ),
    )
  }

  showTable(tables: HTMLElement[]) {
    this.tableBox.replaceChildren(
      h("form", { method: "dialog" }, h("button", "Close")),
      h("div.scroll", { tabindex: 0, role: "region", "aria-label": "The cells in view" }, tables),
    )
    this.tableBox.showModal()
  }

  draw() {
    const { app, search } = this,
      { css } = app.scale
    this.bind.forEach(f => f())
    if (document.activeElement != search) search.value = app.S.q
    this.key.replaceChildren(
      h("i", { style: `background:linear-gradient(90deg,${css.filter((_, i) => i % 15 == 0).join()})` }),
      h(
        "span",
        legend(app).map(([s]) => h("span", s)),
      ),
    )
    this.about.replaceChildren(
      ...app.panes.map(r => {
        const { man, L, T } = app.Rs[r]!,
          { about } = man,
          badge = (
            cls: "span.badge" | "span.badge.ok" | "span.badge.not",
            ...kids: (Node | string | false)[]
          ) => h(cls, kids)
        return h(
          "p",
          app.Rs[1] && h("b.letter", letter(r)),
          badge("span.badge", about.model),
          badge("span.badge", about.lens, about.raw && h("em", "raw, unadjusted")),
          badge("span.badge", `${L} depths × ${T.toLocaleString("en-US")} positions`),
          badge(about.ok ? "span.badge.ok" : "span.badge.not", (about.ok ? "✓ " : "! ") + about.check),
        )
      }),
    )
  }
}
