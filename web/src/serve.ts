/* The served page: a prompt box with progress, the readings made so far, and the page below. */
import { h } from "./dom"
import type { Manifest, Source } from "./format"
import type { Options } from "./page"
import "./serve.css"

declare const logitlens: {
  mount(element: HTMLElement, source: Source, options?: Options): Promise<() => void>
}

interface Entry {
  id: string
  label: string
  model: string
  lens: string
  shape: [number, number, number]
}
interface Start {
  models: string[]
  loaded: string | null
  lenses: string[]
  limits: { characters: number; tokens: number; top: number }
  history: Entry[]
}
type Event = {
  state: string
  job?: string
  ahead?: number
  model?: string
  phase?: string
  done?: number
  total?: number
  tokens?: number
  lens?: string
  message?: string
  seconds?: number
} & Partial<Entry>

const count = (n: number, noun: string) => `${n} ${noun}${n == 1 ? "" : "s"}`

/** What an event means to a person. */
export function words(e: Event): string {
  switch (e.state) {
    case "sent":
      return "Sending …"
    case "waiting":
      return e.ahead ? `Waiting: ${count(e.ahead, "prompt")} ahead of yours` : "Starting …"
    case "loading":
      return `Loading ${e.model} …`
    case "running":
      return e.phase == "blocks"
        ? `Running ${count(e.tokens!, "token")} through ${count(e.total!, "block")} …`
        : `Reading ${count(e.tokens!, "position")} with the ${e.lens} lens …`
    case "done":
      return `Done in ${e.seconds} s`
    case "cancelled":
      return e.message!.replace(/^c/, "C")
    default:
      return e.message ?? e.state
  }
}

/** How far a run is: "block 3 of 8"; nothing where that is not known. */
export const progress = ({ state, phase, done, total }: Event) =>
  state == "running" ? `${phase!.replace(/s$/, "")} ${done} of ${total}` : ""

/** JSON objects, one on each line, as they arrive. */
export async function* lines(body: ReadableStream<Uint8Array>): AsyncGenerator<Event> {
  const reader = body
    .pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>)
    .getReader()
  let rest = ""
  for (;;) {
    const { done, value } = await reader.read()
    const parts = (rest + (value ?? "")).split("\n")
    rest = parts.pop()!
    for (const part of parts) if (part) yield JSON.parse(part)
    if (done) return
  }
}

/** Ask the server; its refusals are errors whose message is for people. */
async function ask(path: string, request?: RequestInit): Promise<Response> {
  const response = await fetch(path, request)
  if (response.ok) return response
  throw Error((await response.text()).trim() || `${response.status} ${response.statusText}`)
}
const getJSON = async <T>(path: string): Promise<T> => (await ask(path)).json()

class Desk {
  private prompt = h("textarea", {
    rows: 2,
    placeholder: "Type a prompt",
    "aria-label": "Prompt",
    spellcheck: "false",
  })
  private model = h("select", { "aria-label": "Model" })
  private lens = h("select", { "aria-label": "Lens" })
  private top = h("input", { type: "number", min: 1, "aria-label": "Tokens kept in each cell" })
  private track = h("input", {
    type: "text",
    placeholder: " Paris, Rome",
    "aria-label": "Tokens to track, separated by commas; spaces count",
  })
  private go = h("button.go", { type: "submit" }, "Read")
  private stop = h("button", { type: "button" }, "Cancel")
  private status = h("p.status", { role: "status" })
  private bar = h("progress", { "aria-label": "Progress" })
  private progress = h("span.lab")
  /** shown while a prompt is being read */
  private underway = h("div.way", { hidden: true }, this.bar, this.progress, this.stop)
  private list = h("ol.made", { "aria-label": "Readings" })
  private compare = h("button", { type: "button", disabled: true }, "Compare")
  private export = h("a.button", { hidden: true }, "Export file")
  private exact = h(
    "button",
    { type: "button", hidden: true, title: "read again, with the pinned tokens followed in every cell" },
    "Track pins exactly",
  )
  private page = h("div")
  private made: Entry[]
  /** ids of the readings ticked, and of those on the page */
  private chosen: string[] = []
  private shown: string[] = []
  private close?: () => void
  private busy = false
  private job?: string

  constructor(
    root: HTMLElement,
    private start: Start,
  ) {
    const { model, lens, top, prompt } = this
    for (const [select, values] of [[model, start.models] as const, [lens, start.lenses] as const]) {
      select.append(...values.map(value => h("option", { value }, value)))
    }
    if (start.loaded) model.value = start.loaded
    top.max = String(start.limits.top)
    top.value = String(Math.min(10, start.limits.top))
    this.made = start.history
    const box = this.layout()
    followSystemTheme(box)
    this.listen()
    root.append(box, this.page)
    this.draw()
    // what the address names, where it is still there; a reading forgotten is not an error here
    const named = (new URLSearchParams(location.search).get("show") ?? "").split(",")
    const kept = named.filter(id => this.made.some(entry => entry.id == id))
    const [latest] = this.made
    if (latest) void this.show(kept.length ? kept : [latest.id])
    else {
      prompt.value = "The Eiffel Tower is in the city of"
      this.say("Enter reads the prompt; Shift+Enter begins a new line")
    }
    prompt.focus()
  }

  private layout(): HTMLElement {
    const label = (text: string, control: HTMLElement) => h("label", h("span.lab", text), control)
    const form = h(
      "form.ask",
      this.prompt,
      h(
        "div.tools",
        label("Model", this.model),
        label("Lens", this.lens),
        label("Top", this.top),
        label("Track", this.track),
        this.go,
      ),
    )
    form.onsubmit = event => {
      event.preventDefault()
      void this.read()
    }
    const motto = "what the model would say if it stopped after each layer"
    return h(
      "div.ll.desk",
      h("div.line", h("h1", "logitlens"), h("span.lab", motto)),
      form,
      h("div.now", this.status, this.underway),
      h("div.row", this.list, h("span.end", this.compare, this.exact, this.export)),
    )
  }

  private listen() {
    this.prompt.onkeydown = event => {
      // Enter reads; Shift+Enter is a line of the prompt
      if (event.key != "Enter" || event.shiftKey || event.isComposing) return
      event.preventDefault()
      void this.read()
    }
    this.stop.onclick = () => this.cancel()
    this.compare.onclick = () => this.show(this.chosen)
    this.exact.onclick = () => void this.again()
    this.export.onclick = () => {
      const state = encodeURIComponent(location.hash.slice(1))
      this.export.href = `api/export/${this.shown}?state=${state}`
    }
  }

  private say(text: string, kind: "" | "problem" = "") {
    // a screen reader hears it when it changes
    if (this.status.textContent != text) this.status.textContent = text
    this.status.className = "status " + kind
  }

  private setBusy(busy: boolean) {
    this.busy = busy
    // a button that is disabled or hidden while it has the focus would drop it
    this.go.ariaDisabled = String(busy)
    if (this.underway.contains(document.activeElement)) this.prompt.focus()
    this.underway.hidden = !busy
    this.stop.disabled = busy
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
    this.prompt.focus()
    this.stop.disabled = true
    this.say("Cancelling …")
    // where it has just ended, or the server has, the stream says so
    fetch("api/read/" + this.job, { method: "DELETE" }).catch(() => {})
  }

  /** What the form asks for. */
  private get order(): object {
    const track = this.track.value
    return {
      prompt: this.prompt.value,
      model: this.model.value,
      lens: this.lens.value,
      top: Number(this.top.value),
      track: track ? track.split(",") : [],
    }
  }

  /** Read the prompt, and show the reading. */
  private async read() {
    if (this.busy) return
    const { length } = [...this.prompt.value]
    const { characters } = this.start.limits
    if (length <= characters) return this.run([this.order])
    const found = `The prompt has ${length.toLocaleString("en")} characters`
    this.say(`${found}, at most ${characters.toLocaleString("en")} are read here`, "problem")
  }

  /** Send orders, one after the other, say what happens to them, and show the readings. */
  private async run(orders: object[]) {
    if (this.busy) return
    this.setBusy(true)
    this.report({ state: "sent" })
    try {
      const ids: string[] = []
      let last: Event | undefined
      for (const order of orders) {
        last = await this.follow(order)
        if (last.state == "cancelled") return this.say(words(last))
        if (last.state != "done") throw Error(words(last))
        this.made.unshift(last as Entry)
        ids.push(last.id!)
      }
      await this.show(ids)
      this.say(words(last!))
    } catch (error) {
      // fetch has no other words for a server that is gone
      const gone = error instanceof TypeError
      const message = "The server does not answer: is `logitlens serve` still running?"
      this.say(gone ? message : (error as Error).message, "problem")
    } finally {
      this.draw()
      this.setBusy(false)
    }
  }

  /** Send an order, report its events, and return the last of them. */
  private async follow(order: object): Promise<Event> {
    const response = await ask("api/read", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(order),
    })
    let last: Event = { state: "error", message: "the server ended before the reading was done" }
    for await (const event of lines(response.body!)) {
      last = event
      if (event.state != "done") this.report(event)
    }
    return last
  }

  /** Read what is shown again, with the pinned tokens tracked, so that no line has a gap. */
  private async again() {
    // the page writes its state into the address a moment after a change
    await new Promise(done => setTimeout(done, 250))
    const track = pinnedIds(location.hash)
    if (track.length) void this.run(this.shown.map(again => ({ again, track })))
    else this.say("Pin a token first: P, or the pin in a cell’s card")
  }

  /** Put readings on the page. */
  private async show(ids: string[]) {
    try {
      const at = `api/page/${ids}`
      const manifest = await getJSON<Manifest>(at)
      const read = async (name: string) => (await ask(`${at}/${name}`)).arrayBuffer()
      this.close?.()
      this.close = await logitlens.mount(this.page, { manifest, read }, { hash: true })
      this.shown = ids
      history.replaceState(null, "", `?show=${ids}${location.hash}`)
      this.export.hidden = this.exact.hidden = false
      this.draw()
    } catch (error) {
      this.say((error as Error).message, "problem")
    }
  }

  private draw() {
    const { chosen } = this
    this.list.replaceChildren(...this.made.map(entry => this.entry(entry)))
    this.compare.disabled = chosen.length < 2
    this.compare.textContent = chosen.length < 2 ? "Compare" : `Compare ${chosen.length}`
  }

  private entry({ id, label, model, lens }: Entry): HTMLElement {
    const box = h("input", { type: "checkbox", "aria-label": "compare " + label })
    box.checked = this.chosen.includes(id)
    box.onchange = () => {
      const others = this.chosen.filter(other => other != id)
      this.chosen = box.checked ? [...others, id].slice(-COMPARED) : others
      this.draw()
    }
    const name = h("bdi", label.slice(0, 60))
    const source = h("small", ` ${model} · ${lens}`)
    const show = h("button", { type: "button", onclick: () => this.show([id]), title: label }, name, source)
    return h("li", { "aria-current": this.shown.includes(id) && "true" }, box, show)
  }
}

/** Readings compared at most. */
const COMPARED = 8

function followSystemTheme(box: HTMLElement) {
  const dark = matchMedia("(prefers-color-scheme: dark)")
  const apply = () => {
    document.documentElement.dataset.theme = box.dataset.theme = dark.matches ? "dark" : "light"
  }
  dark.onchange = apply
  apply()
}

/** Ids of all tokens that the state in an address pins. */
function pinnedIds(hash: string): number[] {
  try {
    const pins = JSON.parse(new URLSearchParams(hash.slice(1)).get("pins") ?? "[]") as number[][]
    return pins.flatMap(([, ...ids]) => ids)
  } catch {
    // not an address of ours
    return []
  }
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
