/* mount(element, source, options): the page, the same in a file, a notebook and the server. */
import { App } from "./app"
import { h } from "./dom"
import { embedded, open, type Source } from "./format"
import { Page, type Options } from "./page"
import "./style.css"

/** Takes the page away again; `append` adds a column to its reading. */
export interface Mounted {
  (): void
  append(part: Source): Promise<void>
}

/** Show a source in an element. */
export async function mount(element: HTMLElement, source: Source, options: Options = {}): Promise<Mounted> {
  const box = h("div.ll.page")
  element.replaceChildren(box)
  try {
    const { title, frame, statistics } = source.manifest
    const all: Options = { ...source.manifest.options, ...options }
    const readings = await open(source)
    const state = (all.hash && location.hash) || all.state || ""
    const page = new Page(box, title, new App(readings, statistics, frame, state), all)
    const append = async (part: Source) => {
      const [column] = await open(part)
      await column!.load(0)
      page.append(column!)
    }
    return Object.assign(() => page.close(), { append })
  } catch (error) {
    box.append(h("p.problem", { role: "alert" }, (error as Error).message))
    return Object.assign(() => box.remove(), { append: async () => {} })
  }
}

/** The page of a file: data in the document. */
export function file(element: HTMLElement, options: Options = {}) {
  const manifest = JSON.parse(document.querySelector("[data-ll=manifest]")!.textContent!)
  return mount(element, embedded(document, manifest), { hash: true, ...options })
}
