// @vitest-environment happy-dom
import { beforeEach, expect, it, vi } from "vitest"
import type { Manifest } from "../src/format"
import { mount } from "../src/main"
import type { Options } from "../src/page"
import { serve } from "../src/serve"
import type { Entry, Form } from "../src/wire"
import { manifest, read } from "./pages"

const form = (model: string): Form => ({
  prompt: "Hi",
  model,
  lenses: ["logit"],
  top: 5,
  track: [],
  edits: [],
  write: null,
})
const entry = (id: string, model: string): Entry => ({
  id,
  label: "reading " + id,
  model,
  lens: "logit",
  shape: [3, 10, 4],
  text: "Hi",
  order: form(model),
})
const history = [entry("r1", "one"), entry("r2", "two")]

/** A server whose answers arrive when they are let: what was asked of it, and the pages that were made. */
class World {
  asked: { path: string; answer: (body: unknown) => void }[] = []
  /** what was asked to be read, and what is said about it */
  sent: Record<string, unknown>[] = []
  private events = new TransformStream<Uint8Array, Uint8Array>()
  pages: { title: string; open: boolean; ready: () => void; reading: any; actions: any }[] = []

  constructor() {
    const start = { models: ["one", "two"], loaded: "one", lenses: ["logit"], history, version: 1 }
    const limits = { characters: 100, tokens: 100, top: 50, written: 9 }
    const fetch = (path: string, request?: RequestInit) => {
      if (path == "api/start") return Promise.resolve(Response.json({ ...start, limits }))
      if (path == "api/read") {
        this.sent.push(JSON.parse(request!.body as string))
        return Promise.resolve({ ok: true, body: this.events.readable })
      }
      if (path.startsWith("api/readings")) return Promise.resolve(Response.json({ version: 1 }))
      return new Promise<Response>(done => {
        const answer = (body: unknown) => done(Response.json(body))
        this.asked.push({ path, answer })
      })
    }
    vi.stubGlobal("fetch", fetch)
    const mount = (_: HTMLElement, { manifest }: { manifest: Manifest }, { actions }: Options) =>
      new Promise(done => {
        const reading = { manifest: manifest.readings?.[0] }
        const page = { title: manifest.title, open: false, ready, reading, actions }
        function ready() {
          page.open = true
          done(Object.assign(() => void (page.open = false), { append: async () => {} }))
        }
        this.pages.push(page)
      })
    vi.stubGlobal("logitlens", { mount })
  }
  /** The manifest of some readings arrives. */
  async arrives(ids: string, meta = {}) {
    const request = this.asked.find(({ path }) => path == "api/page/" + ids)!
    this.asked.splice(this.asked.indexOf(request), 1)
    request.answer({ title: ids, readings: [{ meta }] })
    await settled()
  }
  /** The page of some readings is there. */
  async mounted(ids: string) {
    this.pages.find(page => page.title == ids)!.ready()
    await settled()
  }
  /** A column that the model has read. */
  column = () => this.say({ state: "column", manifest: { title: "growing" }, blocks: {} })
  /** What is read is cancelled. */
  async ends() {
    await this.say({ state: "cancelled", message: "cancelled" })
    await this.events.writable.close()
    this.events = new TransformStream()
    await settled()
  }
  private async say(event: object) {
    const writer = this.events.writable.getWriter()
    void writer.write(new TextEncoder().encode(JSON.stringify(event) + "\n"))
    writer.releaseLock()
    await settled()
  }
  get open() {
    return this.pages.filter(page => page.open).map(page => page.title)
  }
}
const settled = () => new Promise(done => setTimeout(done, 20))
const press = async (selector: string) => {
  document.querySelector<HTMLElement>(selector)!.click()
  await settled()
}

let world: World
beforeEach(async () => {
  document.body.replaceChildren()
  location.href = "about:blank"
  world = new World()
  await serve(document.body)
})

it("the reading that was chosen last is shown, whichever arrives first", async () => {
  await press("[title='reading r2']")
  await world.arrives("r2")
  await world.mounted("r2")
  await world.arrives("r1")
  expect(world.pages.map(page => page.title)).toEqual(["r2"])
  expect(world.open).toEqual(["r2"])
  expect(document.querySelector("[aria-current]")!.textContent).toContain("reading r2")
})

it("a page that is made too late is closed, so that one of them hears the keys", async () => {
  await world.arrives("r1")
  await press("[title='reading r2']")
  await world.arrives("r2")
  await world.mounted("r2")
  await world.mounted("r1")
  expect(world.open).toEqual(["r2"])
  await press("[title='reading r1']")
  await world.arrives("r1")
  expect(world.open).toEqual([])
})

it("a text that is being written does not take the place of what was chosen since", async () => {
  await world.arrives("r1")
  await world.mounted("r1")
  await press("[title^='let the model write after']")
  await world.column()
  await press("[title='reading r2']")
  await world.arrives("r2")
  await world.mounted("growing")
  await world.mounted("r2")
  await world.column()
  expect(world.pages.map(page => page.title)).toEqual(["r1", "growing", "r2"])
  expect(world.open).toEqual(["r2"])
})

it("a reading goes on with its own model, whichever the form has by now", async () => {
  await world.arrives("r1", { generation: { ids: [7] } })
  await world.mounted("r1")
  const model = document.querySelector<HTMLSelectElement>("[aria-label=Model]")!
  model.value = "two"
  await press("[title='let the model write on from the end']")
  const from = { id: "r1", position: 9, token: 7 }
  expect(world.sent).toMatchObject([{ model: "one", write: { max_new_tokens: 40 }, from }])
  await world.ends()
  model.value = "two"
  const { reading, actions } = world.pages[0]!
  actions.append({ reading, l: 0, t: 4 }, 5)
  await settled()
  expect(world.sent[1]).toMatchObject({
    model: "one",
    write: null,
    from: { id: "r1", position: 4, token: 5 },
  })
})

it("a page that is closed leaves the address to others", async () => {
  const close = await mount(document.body, { manifest, read }, { hash: true })
  const replaced = vi.spyOn(window.history, "replaceState")
  close()
  // longer than a change waits to be saved
  await new Promise(done => setTimeout(done, 300))
  expect(replaced).not.toHaveBeenCalled()
})
