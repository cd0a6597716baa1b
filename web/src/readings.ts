/* The readings that the server keeps: listed, ticked for comparing, renamed, deleted. */
import { h } from "./dom"
import { ask, getJSON, type Entry, type Start } from "./wire"

interface Hooks {
  /** a reading was chosen from the list */
  choose(id: string): void
  /** what is ticked has changed */
  ticked(): void
  /** a reading is no longer kept */
  deleted(id: string): void
}

/** Readings compared at most. */
const COMPARED = 8

export class Readings {
  readonly element = h("ol.made", { "aria-label": "Readings" })
  /** ids of the readings ticked, and of those on the page */
  ticked: string[] = []
  shown: string[] = []
  private entries: Entry[]
  private version: number

  constructor(
    { history, version }: Start,
    private hooks: Hooks,
  ) {
    this.entries = history
    this.version = version
  }

  find(id: string): Entry | undefined {
    return this.entries.find(entry => entry.id == id)
  }
  get latest(): Entry | undefined {
    return this.entries[0]
  }

  /** Look for readings that other tabs have made. */
  async refresh() {
    const found = await getJSON<{ version: number; history?: Entry[] }>(
      "api/readings?version=" + this.version,
    ).catch(() => null)
    // an answer that was overtaken by a newer one is old
    if (!found?.history || found.version < this.version) return
    this.version = found.version
    this.entries = found.history
    this.ticked = this.ticked.filter(id => this.find(id))
    this.draw()
  }

  draw() {
    // a name that is being typed is not taken away
    if (!this.element.querySelector("input[type=text]"))
      this.element.replaceChildren(...this.entries.map(entry => this.entry(entry)))
    this.hooks.ticked()
  }

  private entry(entry: Entry): HTMLElement {
    const { id, label, model, lens } = entry
    const box = h("input", { type: "checkbox", "aria-label": "compare " + label })
    box.checked = this.ticked.includes(id)
    box.onchange = () => {
      const others = this.ticked.filter(other => other != id)
      this.ticked = box.checked ? [...others, id].slice(-COMPARED) : others
      this.draw()
    }
    const name = h("bdi", label.slice(0, 60))
    const source = h("small", ` ${model} · ${lens}`)
    const show = h(
      "button",
      { type: "button", onclick: () => this.hooks.choose(id), title: label },
      name,
      source,
    )
    const item: HTMLElement = h("li", { "aria-current": this.shown.includes(id) && "true" }, box, show)
    const small = (text: string, title: string, onclick: () => void) =>
      h("button.small", { type: "button", title, "aria-label": `${title} ${label}`, onclick }, text)
    item.append(
      small("✎", "Rename", () => this.rename(entry, show)),
      small("×", "Delete", () => void this.forget(id)),
    )
    return item
  }

  private rename({ id, label }: Entry, show: HTMLElement) {
    const input = h("input", {
      type: "text",
      "aria-label": "Name of the reading",
      value: label,
      maxlength: 120,
    })
    const end = async (name: string) => {
      input.onblur = null
      input.replaceWith(show)
      if (name && name != label) {
        const headers = { "content-type": "application/json" }
        await ask("api/readings/" + id, { method: "POST", headers, body: JSON.stringify({ name }) }).catch(
          () => {},
        )
      }
      await this.refresh()
      this.draw()
    }
    input.onkeydown = event => {
      if (event.key == "Enter") void end(input.value.trim())
      if (event.key == "Escape") void end("")
    }
    input.onblur = () => void end(input.value.trim())
    show.replaceWith(input)
    input.focus()
    input.select()
  }

  private async forget(id: string) {
    await ask("api/readings/" + id, { method: "DELETE" }).catch(() => {})
    await this.refresh()
    // where the server could not be reached it is kept
    if (!this.find(id)) this.hooks.deleted(id)
  }
}
