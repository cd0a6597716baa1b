/* What a person chose on a page, and how it is written in an address. */
import type { Pin } from "./values"

export interface State {
  color: string
  text: string
  map: string
  /** size of a cell; 0: what suits the reading */
  w: number
  h: number
  /** one, side or diff */
  view: string
  a: number
  b: number
  /** layers shown: first, last, and every how many */
  from: number
  to: number
  step: number
  /** the chosen cell: [index of its layer, column], or [] */
  cell: number[]
  pins: Pin[]
  /** pinned columns */
  pos: number[]
  /** text searched for */
  q: string
  /** sections of a chat that are left out, with commas */
  hide: string
  /** so many columns are shown, as if the model had come no further; 0: all */
  upto: number
}

const asText = (value: unknown) => (typeof value == "string" ? value : JSON.stringify(value))

/** The part of a state that differs from the start, as the fragment of an address. */
export function toHash(state: State, start: State): string {
  return (Object.keys(state) as (keyof State)[])
    .filter(key => asText(state[key]) != asText(start[key]))
    .map(key => {
      const value = encodeURIComponent(asText(state[key]))
      // brackets and commas need no escape, and are read more easily
      return `${key}=${value.replace(/%(5B|5D|2C)/g, decodeURIComponent)}`
    })
    .join("&")
}

/** What a fragment says of the state. A foreign address must not break the page: types are checked here,
 * ranges in App. */
export function fromHash(hash: string, start: State): Partial<State> {
  const out: Record<string, unknown> = {}
  new URLSearchParams(hash.replace(/^#/, "")).forEach((text, key) => {
    const usual = start[key as keyof State]
    if (typeof usual == "string") out[key] = text
    else if (usual != null) {
      const value = parsed(text)
      const fits = key == "pins" ? listOf(isPlaces) : Array.isArray(usual) ? isPlaces : Number.isFinite
      if (fits(value)) out[key] = value
    }
  })
  return out
}

const listOf = (fits: (value: unknown) => boolean) => (value: unknown) =>
  Array.isArray(value) && value.every(fits)
const isPlaces = listOf(Number.isInteger)

function parsed(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
