/* The served page: a prompt box with progress, the readings made so far, and the page below. */
import { h } from "./dom"
import { fromBase64, type Manifest, type Source } from "./format"
import { Fields } from "./fields"
import type { Mounted } from "./main"
import type { Options } from "./page"
import { components, heatmap } from "./patches"
import { Readings } from "./readings"
import "./serve.css"
import { ask, getJSON, lines, progress, words, type Event, type Start } from "./wire"

declare const logitlens: {
  mount(element: HTMLElement, source: Source, options?: Options): Promise<Mounted>
}

/** Shown to whoever comes first. */
const EXAMPLE = "The Eiffel Tower is in the city of"
/** Milliseconds between looks at what other tabs have read, and before pins are followed. */
const POLL = 2000
const PATIENCE = 250

class Desk {
  private fields: Fields
  private stop = h("button", { type: "button" }, "Cancel")
  private status = h("p.status", { role: "status" })
  private bar = h("progress", { "aria-label": "Progress" })
  private progress = h("span.lab")
  /** shown while a prompt is being read */
  private underway = h("div.way", { hidden: true }, this.bar, this.progress, this.stop)
  private readings: Readings
  private compare = h("button", { type: "button", disabled: true }, "Compare")
  private goOn = h(
    "button",
    { type: "button", hidden: true, title: "let the model write on from the end" },
    "Write on",
  )
  private export = h("a.button", { hidden: true }, "Export file")
  private answer = h("div.answer")
  private page = h("div")
  private mounted?: Mounted
  /** what was asked for last, by its readings; each time a list of its own */
  private wanted: string[] = []
  private busy = false
  private job?: string
  private following?: ReturnType<typeof setTimeout>

  constructor(
    root: HTMLElement,
    private start: Start,
  ) {
    this.fields = new Fields(start, {
      read: () => void this.read(false),
      write: () => void this.read(true),
      patch: () => void this.patch(),
    })
    this.readings = new Readings(start, {
      choose: id => void this.choose([id]),
      ticked: () => this.drawCompare(),
      deleted: id => this.deleted(id),
    })
    const box = this.layout()
    followSystemTheme(box)
    this.listen()
    root.append(box, this.page)
    this.readings.draw()
    // what the address names, where it is still there; a reading forgotten is not an error here
    const asked = new URLSearchParams(location.search).get("show")
    const kept = (asked ?? "").split(",").filter(id => this.readings.find(id))
    const { latest } = this.readings
    if (latest) void this.choose(kept.length ? kept : [latest.id], false)
    else if (asked == null) {
      this.fields.prompt.value = EXAMPLE
      void this.read(false)
    }
    this.fields.prompt.focus()
    setInterval(() => document.visibilityState == "visible" && void this.readings.refresh(), POLL)
  }

  private layout(): HTMLElement {
    const motto = "what the model would say if it stopped after each layer"
    return h(
      "div.ll.desk",
      h("div.line", h("h1", "logitlens"), h("span.lab", motto)),
      this.fields.element,
      h("div.now", this.status, this.underway),
      h("div.row", this.readings.element, h("span.end", this.compare, this.goOn, this.export)),
      this.answer,
    )
  }

  private listen() {
    this.stop.onclick = () => this.cancel()
    this.compare.onclick = () => this.show(this.readings.ticked)
    this.goOn.onclick = () => {
      const entry = this.readings.find(this.readings.shown[0]!)
      if (entry) void this.continue(entry.id, entry.shape[1] - 1, this.nextId, true)
    }
    this.export.onclick = () => {
      const state = encodeURIComponent(location.hash.slice(1))
      this.export.href = `api/export/${this.readings.shown}?state=${state}`
    }
  }
  /** what the model wrote last in the reading shown, which has no column yet */
  private nextId = -1

  private say(text: string, kind: "" | "problem" = "") {
    // a screen reader hears it when it changes
    if (this.status.textContent != text) this.status.textContent = text
    this.status.className = "status " + kind
  }

  private setBusy(busy: boolean) {
    this.busy = busy
    // a button that is disabled or hidden while it has the focus would drop it
    this.fields.setBusy(busy)
    if (this.underway.contains(document.activeElement)) this.fields.prompt.focus()
    this.underway.hidden = !busy
    this.stop.disabled = busy
    this.stop.textContent = "Cancel"
    this.job = undefined
  }

  /** Show an event: words for the phase, and how far it is. */
  private report(event: Event) {
    if (event.job && event.job != this.job) {
      this.job = event.job
      this.stop.disabled = false
    }
    const cancelling = this.job && this.stop.disabled
    if (!cancelling || event.state == "stalled") this.say(words(event))
    this.progress.textContent = progress(event)
    if (event.state == "running") {
      this.bar.max = event.total!
      this.bar.value = event.done!
      this.bar.setAttribute("aria-valuetext", progress(event))
    } else {
      // no value: something goes on, but nobody knows how far it is
      for (const name of ["value", "aria-valuetext"]) this.bar.removeAttribute(name)
    }
  }

  /** Ask to end what waits or runs; the stream then says that it has ended. */
  private cancel() {
    this.fields.prompt.focus()
    this.stop.disabled = true
    this.say(this.stop.textContent == "Stop" ? "Stopping …" : "Cancelling …")
    // where it has just ended, or the server has, the stream says so
    fetch("api/read/" + this.job, { method: "DELETE" }).catch(() => {})
  }

  /** Read the prompt (or let the model write after it), and show the reading. */
  private async read(write: boolean) {
    if (this.busy) return
    const order = this.fields.order(write)
    const { characters } = this.start.limits
    const length = typeof order.prompt == "string" ? [...order.prompt].length : 0
    if (length <= characters) return this.run(order)
    const found = `The prompt has ${length.toLocaleString("en")} characters`
    this.say(`${found}, at most ${characters.toLocaleString("en")} are read here`, "problem")
  }

  /** Read on from a position of a reading, by its own model: the ids are that model's. */
  private continue(id: string, position: number, token: number, write: boolean) {
    const { order } = this.readings.find(id) ?? {}
    const model = order && { model: order.model }
    return this.run({ ...this.fields.order(write), ...model, from: { id, position, token } })
  }

  /** Send an order, say what happens to it, and show the readings. */
  private async run(order: object, silent = false): Promise<boolean> {
    const last = await this.send("api/read", order)
    if (!last) return false
    await this.readings.refresh()
    // readings that were followed further are shown as they were
    await (silent ? this.show(this.wanted) : this.choose(last.entries!.map(entry => entry.id)))
    this.say(words(last))
    return true
  }

  /** Send something that waits in line; its last event, or nothing where it failed or was cancelled. */
  private async send(path: string, order: object): Promise<Event | undefined> {
    if (this.busy) return
    this.setBusy(true)
    this.answer.replaceChildren()
    this.report({ state: "sent" })
    try {
      const last = await this.follow(path, order)
      if (last.state == "done") return last
      if (last.state == "cancelled") this.say(words(last))
      else throw Error(words(last))
    } catch (error) {
      // fetch has no other words for a server that is gone
      const gone = error instanceof TypeError
      const message = "The server does not answer: is `logitlens serve` still running?"
      this.say(gone ? message : (error as Error).message, "problem")
    } finally {
      this.readings.draw()
      this.setBusy(false)
    }
    return undefined
  }

  /** Send an order, report its events, and return the last of them. */
  private async follow(path: string, order: object): Promise<Event> {
    const response = await ask(path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(order),
    })
    let last: Event = { state: "error", message: "the server ended before the reading was done" }
    let growing: { page?: Mounted } | undefined
    for await (const event of lines(response.body!)) {
      last = event
      if (event.state != "done") this.report(event)
      if (event.state != "column") continue
      const { manifest, blocks } = event
      const source = { manifest: manifest!, read: (name: string) => fromBase64(blocks![name]!).buffer }
      if (growing) await growing.page?.append(source)
      else {
        this.stop.textContent = "Stop"
        growing = { page: await this.put((this.wanted = []), source, { state: "" }, true) }
      }
    }
    return last
  }

  /** Show readings, and what they were asked with in the form. */
  private async choose(ids: string[], fresh = true) {
    const entry = this.readings.find(ids[0]!)
    const entries = ids.flatMap(id => this.readings.find(id) ?? [])
    if (entry)
      this.fields.fill(entry.order, entry.text, [...new Set(entries.flatMap(other => other.order.lenses))])
    await this.show(ids, fresh)
  }

  /** Mount a page in place of the one that is there; nothing where another was wanted meanwhile. */
  private async put(wanted: string[], source: Source, options: Options, fresh: boolean) {
    this.mounted?.()
    this.mounted = undefined
    if (fresh) openAtTheEnd()
    const mounted = await logitlens.mount(this.page, source, { hash: true, ...options })
    if (this.wanted == wanted) return (this.mounted = mounted)
    mounted()
    return undefined
  }

  /** Put readings on the page; those that are new there open at the end. */
  private async show(ids: string[], fresh = false) {
    const wanted = (this.wanted = [...ids])
    try {
      const at = `api/page/${ids}`
      const manifest = await getJSON<Manifest>(at)
      if (this.wanted != wanted) return
      const read = async (name: string) => (await ask(`${at}/${name}`)).arrayBuffer()
      const focused = this.page.contains(document.activeElement)
      this.readings.shown = ids
      const [{ meta }] = manifest.readings as [Manifest["readings"][number]]
      const generation = meta.generation as { ids: number[] } | undefined
      this.nextId = generation?.ids.at(-1) ?? -1
      this.goOn.hidden = ids.length > 1 || this.nextId < 0
      const idOf = (own: unknown) => ids[manifest.readings.findIndex(reading => reading == own)]!
      const mounted = await this.put(
        wanted,
        { manifest, read },
        {
          follow: missing => this.followPins(missing.map(([r, track]) => [ids[r]!, track])),
          actions: {
            append: (cell, token) => {
              const id = idOf(cell.reading.manifest)
              void this.continue(id, cell.t, token, !!this.readings.find(id)?.order.write)
            },
            attribute: async (cell, token) => {
              const question = { id: idOf(cell.reading.manifest), position: cell.t, token }
              const last = await this.send("api/attribute", question)
              if (last) this.say(words(last))
              return last ? components(last.attribution!) : h("p")
            },
          },
        },
        fresh,
      )
      if (!mounted) return
      if (focused) this.page.querySelector<HTMLElement>("[role=grid]")?.focus()
      history.replaceState(null, "", `?show=${ids}${location.hash}`)
      this.export.hidden = false
      this.readings.draw()
    } catch (error) {
      if (this.wanted != wanted) return
      this.wanted = this.readings.shown
      this.say((error as Error).message, "problem")
    }
  }

  /** Pinned tokens are read exactly, as soon as the model is free. */
  private followPins(missing: [id: string, track: number[]][]) {
    const unwanted = () => missing.some(([id]) => !this.wanted.includes(id))
    if (unwanted()) return
    clearTimeout(this.following)
    this.following = setTimeout(async () => {
      if (this.busy) return this.followPins(missing)
      if (unwanted()) return
      for (const [i, [again, track]] of missing.entries()) {
        const last = i == missing.length - 1
        if (!last) {
          if (!(await this.send("api/read", { again, track }))) return
        } else await this.run({ again, track }, true)
      }
    }, PATIENCE)
  }

  /** A grid of patches, under the form. */
  private async patch() {
    const last = await this.send("api/patch", this.fields.patchOrder)
    if (!last) return
    this.answer.replaceChildren(heatmap(last.grid!))
    this.say(words(last))
  }

  private drawCompare() {
    const { length } = this.readings.ticked
    this.compare.disabled = length < 2
    this.compare.textContent = length < 2 ? "Compare" : `Compare ${length}`
  }

  /** A reading was deleted: another takes its place on the page. */
  private deleted(id: string) {
    if (!this.readings.shown.includes(id)) return
    const { latest } = this.readings
    if (latest) return void this.choose([latest.id])
    this.mounted?.()
    this.mounted = undefined
    this.readings.shown = this.wanted = []
    this.export.hidden = this.goOn.hidden = true
  }
}

/** Take the place in the reading shown so far out of the address; colours, pins and the view stay. */
function openAtTheEnd() {
  const state = new URLSearchParams(location.hash.slice(1))
  for (const key of ["cell", "pos", "upto"]) state.delete(key)
  history.replaceState(null, "", "#" + state)
}

function followSystemTheme(box: HTMLElement) {
  const dark = matchMedia("(prefers-color-scheme: dark)")
  const apply = () => {
    document.documentElement.dataset.theme = box.dataset.theme = dark.matches ? "dark" : "light"
  }
  dark.onchange = apply
  apply()
}

export async function serve(root: HTMLElement) {
  try {
    new Desk(root, await getJSON<Start>("api/start"))
  } catch (error) {
    root.append(h("p", { role: "alert" }, (error as Error).message))
  }
}

const root = typeof document == "undefined" ? null : document.getElementById("serve")
if (root) void serve(root)
