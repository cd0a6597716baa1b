/* What the server and its page say to each other: types, events in words, and answers line by line. */
import type { Manifest } from "./format"
import type { Attribution, PatchGrid } from "./patches"

export interface Message {
  role: string
  content: string
}
/** What a reading is asked with. */
export interface Form {
  prompt: string | Message[] | number[]
  model: string
  lenses: string[]
  top: number
  track: (string | number)[]
  edits: string[]
  write: Record<string, number | string> | null
}
export interface Entry {
  id: string
  label: string
  model: string
  lens: string
  shape: [number, number, number]
  /** its prompt, as text */
  text: string
  order: Form
}
export interface Start {
  models: string[]
  loaded: string | null
  lenses: string[]
  limits: { characters: number; tokens: number; top: number; written: number }
  history: Entry[]
  version: number
}
export type Event = {
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
  entries?: Entry[]
  /** a column that the model has just read */
  manifest?: Manifest
  blocks?: Record<string, string>
  attribution?: Attribution
  grid?: PatchGrid
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
      // only a grid of patches goes layer by layer
      if (e.phase == "layers") return `Patching ${count(e.total!, "layer")} …`
      return e.phase == "blocks"
        ? `Running ${count(e.tokens!, "token")} through ${count(e.total!, "block")} …`
        : `Reading ${count(e.tokens!, "position")} with the ${e.lens} lens …`
    case "column":
      return "Writing …"
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
export async function ask(path: string, request?: RequestInit): Promise<Response> {
  const response = await fetch(path, request)
  if (response.ok) return response
  throw Error((await response.text()).trim() || `${response.status} ${response.statusText}`)
}
export const getJSON = async <T>(path: string): Promise<T> => (await ask(path)).json()
