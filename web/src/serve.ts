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
export const far = (e: Event) =>
  e.state == "running" ? `${e.phase!.replace(/s$/, "")} ${e.done} of ${e.total}` : ""

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
    for (const p of parts) if (p) yield JSON.parse(p)
    if (done) return
  }
}

async function get<T>(path: string): Promise<T> {
  const r = await fetch(path)
  if (!r.ok) throw Error((await r.text()).trim() || `${r.status} ${r.statusText}`)
  return r.json()
}

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
  private far = h("span.lab")
  /** shown while a prompt is on its way */
  private way = h("div.way", { hidden: true }, this.bar, this.far, this.stop)
  private list = h("ol.made", { "aria-label": "Readings" })
  private compare = h("button", { type: "button", disabled: true }, "Compare")
  private export = h("a.button", { hidden: true }, "Export file")
  private exact = h(
    "button",
    { type: "button", hidden: true, title: "read again, with the pinned tokens followed in every cell" },
    "Track pins exactly",
  )
  private page = h("div")
  private made: Entry[] = []
  private chosen: string[] = []
  private shown: string[] = []
  private close?: () => void
  private busy = false
  private job?: string
  private most: number

  constructor(root: HTMLElement, start: Start) {
    const label = (text: string, e: HTMLElement) => h("label", h("span.lab", text), e)
    const options = (e: HTMLSelectElement, list: string[]) =>
      e.append(...list.map(value => h("option", { value }, value)))
    options(this.model, start.models)
    options(this.lens, start.lenses)
    if (start.loaded) this.model.value = start.loaded
    this.top.max = String(start.limits.top)
    this.top.value = String(Math.min(10, start.limits.top))
    this.most = start.limits.characters
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
    form.onsubmit = e => {
      e.preventDefault()
      void this.read()
    }
    this.prompt.onkeydown = e => {
      // Enter reads; Shift+Enter is a line of the prompt
      if (e.key == "Enter" && !e.shiftKey && !e.isComposing) (e.preventDefault(), void this.read())
    }
    this.stop.onclick = () => this.cancel()
    this.compare.onclick = () => this.show(this.chosen)
    this.exact.onclick = () => void this.again()
    this.export.onclick = () => {
      this.export.href = `api/export/${this.shown}?state=${encodeURIComponent(location.hash.slice(1))}`
    }
    const dark = matchMedia("(prefers-color-scheme: dark)"),
      box = h(
        "div.ll.desk",
        h(
          "div.line",
          h("h1", "logitlens"),
          h("span.lab", "what the model would say if it stopped after each layer"),
        ),
        form,
        h("div.now", this.status, this.way),
        h("div.row", this.list, h("span.end", this.compare, this.exact, this.export)),
      )
    const theme = () => {
      document.documentElement.dataset.theme = box.dataset.theme = dark.matches ? "dark" : "light"
    }
    dark.onchange = theme
    theme()
    root.append(box, this.page)
    this.made = start.history
    this.draw()
    // what the address names, where it is still there; a reading forgotten is not an error here
    const named = (new URLSearchParams(location.search).get("show") ?? "")
      .split(",")
      .filter(id => this.made.some(m => m.id == id))
    if (this.made[0]) void this.show(named[0] ? named : [this.made[0].id])
    else {
      this.prompt.value = "The Eiffel Tower is in the city of"
      this.say("Enter reads the prompt; Shift+Enter begins a new line")
    }
    this.prompt.focus()
  }

  private say(text: string, kind: "" | "problem" = "") {
    // a screen reader hears it when it changes
    if (this.status.textContent != text) this.status.textContent = text
    this.status.className = "status " + kind
  }

  private working(busy: boolean) {
    this.busy = busy
    // a button that is disabled or hidden while it has the focus would drop it
    this.go.ariaDisabled = String(busy)
    if (this.way.contains(document.activeElement)) this.prompt.focus()
    this.way.hidden = !busy
    this.stop.disabled = busy
    this.job = undefined
  }

  /** Tell an event: words for the phase, and how far it is. */
  private tell(e: Event) {
    if (e.job && e.job != this.job) {
      this.job = e.job
      this.stop.disabled = false
    }
    if (!this.job || !this.stop.disabled) this.say(words(e))
    this.far.textContent = far(e)
    if (e.state == "running") {
      this.bar.max = e.total!
      this.bar.value = e.done!
      this.bar.setAttribute("aria-valuetext", far(e))
    } else {
      // no value: on its way, but nobody knows how far
      for (const name of ["value", "aria-valuetext"]) this.bar.removeAttribute(name)
    }
  }

  /** Ask for an end of what waits or runs; the stream then says that it has ended. */
  private cancel() {
    this.prompt.focus()
    this.stop.disabled = true
    this.say("Cancelling …")
    // where it has just ended, or the server has, the stream says so
    fetch("api/read/" + this.job, { method: "DELETE" }).catch(() => {})
  }

  /** Send orders, one after the other, tell what happens to them, and show the readings. */
  private async read(orders?: object[]) {
    if (this.busy) return
    const length = [...this.prompt.value].length
    if (!orders && length > this.most)
      return this.say(
        `The prompt has ${length.toLocaleString("en")} characters, at most ${this.most.toLocaleString("en")} are read here`,
        "problem",
      )
    this.working(true)
    this.tell({ state: "sent" })
    try {
      const ids: string[] = []
      let last: Event = { state: "error", message: "the server ended before the reading was done" }
      for (const order of orders ?? [
        {
          prompt: this.prompt.value,
          model: this.model.value,
          lens: this.lens.value,
          top: +this.top.value,
          track: this.track.value ? this.track.value.split(",") : [],
        },
      ]) {
        const r = await fetch("api/read", {
          method: "POST",
          headers: { "content-type": "application/json" },
          body: JSON.stringify(order),
        })
        if (!r.ok) throw Error((await r.text()).trim())
        for await (const e of lines(r.body!)) if ((last = e).state != "done") this.tell(e)
        if (last.state == "cancelled") return this.say(words(last))
        if (last.state != "done") throw Error(words(last))
        this.made.unshift(last as Entry)
        ids.push(last.id!)
      }
      await this.show(ids)
      this.say(words(last))
    } catch (e) {
      this.say(
        e instanceof TypeError
          ? "The server does not answer: is `logitlens serve` still running?"
          : (e as Error).message,
        "problem",
      )
    } finally {
      this.draw()
      this.working(false)
    }
  }

  /** Read what is shown again, with the pinned tokens tracked, so that no line has a gap. */
  private async again() {
    let track: number[] = []
    // the page writes its state into the address a moment after a change
    await new Promise(done => setTimeout(done, 250))
    try {
      track = (
        JSON.parse(new URLSearchParams(location.hash.slice(1)).get("pins") ?? "[]") as number[][]
      ).flatMap(p => p.slice(1))
    } catch {
      /* not an address of ours */
    }
    if (track.length) void this.read(this.shown.map(again => ({ again, track })))
    else this.say("Pin a token first: P, or the pin in a cell’s card")
  }

  /** Put readings on the page. */
  private async show(ids: string[]) {
    try {
      const at = `api/page/${ids}`,
        manifest = await get<Manifest>(at)
      this.close?.()
      this.close = await logitlens.mount(
        this.page,
        {
          manifest,
          async read(name) {
            const r = await fetch(`${at}/${name}`)
            if (!r.ok) throw Error((await r.text()).trim())
            return r.arrayBuffer()
          },
        },
        { hash: true },
      )
      this.shown = ids
      history.replaceState(null, "", `?show=${ids}${location.hash}`)
      this.export.hidden = this.exact.hidden = false
      this.draw()
    } catch (e) {
      this.say((e as Error).message, "problem")
    }
  }

  private draw() {
    this.list.replaceChildren(
      ...this.made.map(m => {
        const box = h("input", { type: "checkbox", "aria-label": "compare " + m.label })
        box.checked = this.chosen.includes(m.id)
        box.onchange = () => {
          this.chosen = box.checked ? [...this.chosen, m.id].slice(-8) : this.chosen.filter(x => x != m.id)
          this.draw()
        }
        return h(
          "li",
          { "aria-current": this.shown.includes(m.id) && "true" },
          box,
          h(
            "button",
            { type: "button", onclick: () => this.show([m.id]), title: m.label },
            h("bdi", m.label.slice(0, 60)),
            h("small", ` ${m.model} · ${m.lens}`),
          ),
        )
      }),
    )
    this.compare.disabled = this.chosen.length < 2
    this.compare.textContent = this.chosen.length < 2 ? "Compare" : `Compare ${this.chosen.length}`
  }
}

export async function serve(root: HTMLElement) {
  try {
    new Desk(root, await get<Start>("api/start"))
  } catch (e) {
    root.append(h("p", { role: "alert" }, (e as Error).message))
  }
}

const root = typeof document == "undefined" ? null : document.getElementById("serve")
if (root) void serve(root)
