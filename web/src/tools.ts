/* The head of the page and its controls: native elements, so that keyboards and readers know them. */
import type { App } from "./app"
import { h } from "./dom"
import { legend, legendNote } from "./export"
import type { Reading } from "./format"
import { item, menu } from "./menu"
import type { State } from "./state"
import { clip, letter, visible } from "./text"

export interface Actions {
  zoom(factor: number): void
  fit(): void
  copy(what: "text" | "python" | "csv" | "link"): void
  save(what: "png" | "svg" | "csv"): void
  table(): void
  find(step: number): void
  /** back to the grid */
  leave(): void
}

const KEYS = {
  "← ↑ → ↓": "move",
  "Home End": "first, last (Ctrl: corner)",
  "PgUp PgDn": "a page (Shift: sideways)",
  "Enter Esc": "into the inspector, back to the grid",
  P: "pin the top token",
  F: "pin the final token",
  "Shift P": "pin the position",
  M: "next colour",
  V: "next view",
  C: "copy the cell (Shift: Python)",
  "/": "search; N: next place",
  T: "table",
  "+ − 0": "zoom, fit",
}
const STEPS = [1, 2, 3, 4, 6, 8, 12]
const SEARCH_DELAY = 120
const RESULTS = 8

type Option = [value: string | number, label: string]

export class Tools {
  readonly head: HTMLElement
  readonly bar: HTMLElement
  readonly help: HTMLDialogElement
  readonly tableDialog = h("dialog.wide", { "aria-label": "Table" })
  readonly search = h("input", {
    type: "search",
    placeholder: "Search",
    "aria-label": "Search tokens or a position",
  })
  private results = h("div.results", { hidden: true })
  private legend = h("div.legend")
  private about = h("div.about")
  /** brings each control in line with the state */
  private updates: (() => void)[] = []
  private waiting?: ReturnType<typeof setTimeout>

  constructor(
    private app: App,
    title: string,
    private actions: Actions,
  ) {
    this.head = h("header", h("h1", h("bdi", clip(title, 160))), this.about)
    this.bar = h(
      "div.tools",
      { role: "group", "aria-label": "View" },
      this.viewControls(),
      this.colourControls(),
      this.sizeControls(),
      this.searchControls(),
      this.takeControls(),
    )
    this.help = this.makeHelp()
  }

  /** A control that shows what `value` gives, takes what is chosen to `set`, and is hidden where `when`
   * says so. */
  private choice(
    label: string,
    name: string,
    value: () => string,
    set: (value: string) => void,
    options: () => Option[],
    when = () => true,
  ): HTMLElement {
    const element = h("select", { "aria-label": label, onchange: () => set(element.value) })
    const box = h("label", name && h("span", name), element)
    let shown = ""
    this.updates.push(() => {
      const list = options()
      if (list.join() != shown) {
        element.replaceChildren(...list.map(([value, text]) => h("option", { value }, text)))
        shown = list.join()
      }
      element.value = value()
      box.hidden = !when()
    })
    return box
  }

  /** A choice of a part of the state. */
  private select(
    label: string,
    key: keyof State,
    options: () => Option[],
    name = label,
    when = () => true,
  ): HTMLElement {
    const { app } = this
    const set = (value: string) =>
      app.set({ [key]: typeof app.start[key] == "number" ? Number(value) : value })
    return this.choice(label, name, () => String(app.state[key]), set, options, when)
  }

  private viewControls() {
    const { app } = this
    const { state } = app
    const readings = app.readings.map(({ manifest }, r): Option => [
      r,
      `${letter(r)} · ${clip(manifest.label, 40)}`,
    ])
    const views: Option[] = [["side", "side by side"], ["diff", "difference"], ...readings]
    const view = (value: string) => app.set(/\d/.test(value) ? { view: "one", a: +value } : { view: value })
    const others = (key: "a" | "b") => () => readings.filter(([r]) => r != state[key])
    // of two readings there is one difference
    const chosen = () => app.isDiff && readings.length > 2
    return h(
      "span.views",
      this.choice(
        "View",
        "",
        () => (state.view == "one" ? String(state.a) : state.view),
        view,
        () => views,
        () => app.several,
      ),
      this.select("Difference of", "b", others("a"), "", chosen),
      this.select("minus", "a", others("b"), "−", chosen),
    )
  }

  private colourControls() {
    const { app } = this
    const colours = () => Object.entries(app.modes).map(([name, mode]): Option => [name, mode.label])
    const layers = () => app.layers.map((label, i): Option => [i, label])
    const texts: Option[] = [
      ["token", "tokens"],
      ["value", "values"],
      ["none", "colour only"],
    ]
    const steps = STEPS.map((n): Option => [n, String(n)])
    const maps: Option[] = [
      ["house", "house"],
      ["cividis", "cividis"],
      ["viridis", "viridis"],
    ]
    return [
      this.select("Colour", "color", colours, ""),
      this.legend,
      menu(
        "form",
        "Show",
        this.select("cells", "text", () => texts),
        this.select("layers from", "from", layers),
        this.select("to", "to", layers),
        this.select("every", "step", () => steps),
        this.select("scale", "map", () => maps),
        ...this.sectionFilter(),
        item("Table", this.actions.table),
      ),
    ]
  }

  /** Of a chat: template, thinking and the rest, each shown or left out. */
  private sectionFilter() {
    const { app } = this
    const sections = [...new Set(app.readings.flatMap(reading => reading.section))].filter(s => s)
    if (sections.length < 2) return []
    return sections.map(section => {
      const box = h("input", { type: "checkbox" })
      box.onchange = () => {
        const others = app.state.hide.split(",").filter(other => other && other != section)
        app.filter([...others, ...(box.checked ? [] : [section])].join())
      }
      this.updates.push(() => (box.checked = !app.state.hide.split(",").includes(section)))
      return h("label", h("span", section), box)
    })
  }

  private sizeControls() {
    const { zoom, fit } = this.actions
    return h(
      "span.group",
      button("−", "Smaller cells", () => zoom(0.8)),
      h("button", { onclick: fit }, "Fit"),
      button("+", "Larger cells", () => zoom(1.25)),
    )
  }

  private searchControls() {
    const { app, search, results, actions } = this
    search.oninput = () => {
      clearTimeout(this.waiting)
      this.waiting = setTimeout(() => {
        app.set({ q: search.value })
        this.showResults()
      }, SEARCH_DELAY)
    }
    search.onfocus = () => search.select()
    search.onkeydown = event => {
      if (event.key == "Enter") {
        clearTimeout(this.waiting)
        if (app.state.q != search.value) app.set({ q: search.value })
        // what was found is looked at: nothing lies over it
        results.hidden = true
        actions.find(event.shiftKey ? -1 : 1)
      }
      if (event.key == "ArrowDown") results.querySelector("button")?.focus()
    }
    const steps = h(
      "span.group",
      button("↑", "Previous place", () => actions.find(-1)),
      button("↓", "Next place", () => actions.find(1)),
    )
    this.updates.push(() => (steps.hidden = !app.state.q))
    const box: HTMLElement = h("div.find", { role: "search" }, search, steps, results)
    box.onkeydown = event => {
      if (event.key != "Escape") return
      search.value = ""
      app.set({ q: "" })
      results.hidden = true
      actions.leave()
    }
    box.addEventListener("focusout", event => {
      if (!box.contains(event.relatedTarget as Node)) results.hidden = true
    })
    return box
  }

  private takeControls() {
    const { copy, save } = this.actions
    return h(
      "span.end",
      menu(
        "",
        "Copy",
        item("Cell as text", () => copy("text")),
        item("Cell as Python", () => copy("python")),
        item("Cells in view as CSV", () => copy("csv")),
        item("Link to this view", () => copy("link")),
      ),
      menu(
        "",
        "Save",
        item("PNG", () => save("png")),
        item("SVG", () => save("svg")),
        item("CSV, all of it", () => save("csv")),
      ),
      h("button.round", { "aria-label": "Help", onclick: () => this.help.showModal() }, "?"),
    )
  }

  private makeHelp(): HTMLDialogElement {
    const { readings, several } = this.app
    const explain = ({ manifest }: Reading, r: number) => [
      several && h("h3", `${letter(r)} · ${clip(manifest.label, 80)}`),
      manifest.about.text.map(sentence => h("p", sentence)),
    ]
    const provenance = JSON.stringify(
      readings.map(reading => reading.manifest.meta),
      null,
      1,
    )
    return h(
      "dialog",
      { "aria-label": "Help" },
      closeForm(),
      h("h2", "What am I looking at?"),
      readings.map(explain),
      h("p", "Bold: the same token as in the last row. Hatched: missing, no value to show."),
      h("h2", "Keys"),
      h(
        "dl",
        Object.entries(KEYS).map(([key, action]) => [h("dt", h("kbd", key)), h("dd", action)]),
      ),
      h("h2", "Where it comes from"),
      h("pre", { tabindex: 0, "aria-label": "Provenance" }, provenance),
    )
  }

  /** Tokens that match the search, to pin. */
  private showResults() {
    const { app, results } = this
    const { q, a } = app.state
    const { readingA } = app
    const found = [...app.foundIds[a]!]
    results.hidden = !q || /^\d+$/.test(q)
    const shortest = found.sort((x, y) => readingA.piece(x).length - readingA.piece(y).length)
    results.replaceChildren(
      h("p", found.length ? `${found.length} tokens match; choose one to pin it` : "no recorded token"),
      ...shortest.slice(0, RESULTS).map(id => {
        const name = h("bdi", visible(clip(readingA.piece(id), 40)))
        return h("button", { onclick: () => app.pin(readingA, id) }, name, h("small", ` ${id}`))
      }),
    )
  }

  showTable(tables: HTMLElement[]) {
    const attributes = { tabindex: 0, role: "region", "aria-label": "The cells in view" }
    this.tableDialog.replaceChildren(closeForm(), h("div.scroll", attributes, tables))
    this.tableDialog.showModal()
  }

  draw() {
    const { app, search } = this
    const { css } = app.scale
    for (const update of this.updates) update()
    if (document.activeElement != search) search.value = app.state.q
    const stops = css.filter((_, i) => i % 15 == 0).join()
    this.legend.title = legendNote(app)
    this.legend.replaceChildren(
      h("i", { style: `background:linear-gradient(90deg,${stops})` }),
      h(
        "span",
        legend(app).map(([label]) => h("span", label)),
      ),
    )
    this.about.replaceChildren(...app.panes.map(r => this.badges(r)))
  }

  /** Model, lens, size and check of a reading. */
  private badges(r: number) {
    const { manifest, L, T } = this.app.readings[r]!
    const { model, lens, note, edited, check, ok } = manifest.about
    return h(
      "p",
      this.app.several && h("b.letter", letter(r)),
      h("span.badge", model),
      h("span.badge", lens, note && h("em", note)),
      edited && h("span.badge", "edited: ", h("bdi", clip(visible(edited), 120))),
      h("span.badge.size", `${L} layers × ${T.toLocaleString("en-US")} positions`),
      h(ok ? "span.badge.ok" : "span.badge.not", (ok ? "✓ " : "! ") + check),
    )
  }
}

const button = (text: string, label: string, onclick: () => void) =>
  h("button", { title: label, "aria-label": label, onclick }, text)

const closeForm = () => h("form", { method: "dialog" }, h("button", "Close"))
