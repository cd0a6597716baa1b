/* What a cell is worth: colour modes made from the manifest's statistics, pins and candidates. */
import type { Reading, Statistic, TokenValue } from "./format"
import { count, number, prob, signed, superscript } from "./text"

/** A way to colour the cells. */
export interface Mode {
  label: string
  unit: string
  scale: Statistic["scale"]
  /** Infinity: known only to be beyond the last of the top k; NaN: missing */
  value(reading: Reading, l: number, t: number): number
  /** [dark end, bright end]; of ranks in decades */
  domain(reading: Reading): [number, number]
  format(value: number): string
  /** as `format`, without the unit */
  short(value: number): string
  /** the statistic of the cell itself that is shown; none where it is one of a token */
  statistic?: Statistic
}

/** Where a logarithmic scale begins, in the statistic's unit. */
export const LEAST = 0.01

/** A group of tokens that counts as one: [index of the reading whose ids these are, ...ids]. */
export type Pin = number[]

/** Statistics that the page derives itself from the top k. */
const DERIVED: Record<string, (reading: Reading, l: number, t: number) => number> = {
  final: (reading, l, t) => reading.token(l, t, reading.finalId(t)).rank,
  agree: (reading, l, t) => {
    const id = reading.topId(l, t)
    return id < 0 ? NaN : +(id == reading.finalId(t))
  },
}

export function statisticMode(statistic: Statistic): Mode {
  const { field, label, scale, unit, per } = statistic
  const read = DERIVED[field] ?? ((reading, l, t) => reading.value(field, l, t))
  return {
    label: label[0]!.toUpperCase() + label.slice(1),
    unit,
    scale,
    value: scale == "probability" ? (reading, l, t) => Math.exp(read(reading, l, t)) : read,
    domain: reading => domain(reading, statistic),
    format: value => format(value, scale, unit),
    short: value => format(value, scale),
    statistic: per == "cell" ? statistic : undefined,
  }
}

function domain({ manifest, K }: Reading, { field, scale, bright }: Statistic): [number, number] {
  if (scale == "probability") return [0, 1]
  if (scale == "yes or no") return [-0.25, 1.05]
  if (scale == "rank") {
    const ends = [field, "next_ranks"].map(name => manifest.range[name]?.[1] ?? 1)
    return [Math.log10(Math.max(10, K, ...ends)), 0]
  }
  const [low, high] = manifest.range[field] ?? [0, 1]
  if (scale == "log") {
    const ends: [number, number] = [Math.log10(LEAST), Math.log10(Math.max(10 * LEAST, high))]
    return bright == "high" ? ends : [ends[1], ends[0]]
  }
  // a linear scale begins or ends at 0, or has it inside
  const ends: [number, number] = [Math.min(low, 0), Math.max(high, 0)]
  return bright == "high" ? ends : [ends[1], ends[0]]
}

function format(value: number, scale: Statistic["scale"], unit = ""): string {
  if (scale == "probability") return prob(Math.log(value))
  if (scale == "yes or no") return Number.isNaN(value) ? "–" : value ? "yes" : "no"
  if (scale == "rank") return value == Infinity ? "beyond the top k" : "#" + count(Math.round(value))
  return unit ? `${number(value)} ${unit}` : number(value)
}

/** b minus a in words: of the values themselves, whatever scale their colours are on. */
export function delta({ scale }: Mode, [a = NaN, b = NaN]: number[]): string {
  if (!Number.isFinite(b - a)) return "–"
  return scale == "probability" ? probDelta(a, b) : signed(b - a, scale == "rank" ? 0 : 2)
}

/** q minus p: in percentage points; of two small ones the ratio, which says more. */
export function probDelta(p: number, q: number): string {
  if (!Number.isFinite(p + q)) return "–"
  if (Math.max(p, q) < 0.001 && p) return "×" + +(q / p).toPrecision(2)
  return signed(100 * (q - p), 1)
}

/** What is shown of a pin; its scale ends where that of the next token does. */
const PINNED: Statistic[] = [
  {
    name: "pin",
    field: "next_logprobs",
    label: "log-probability",
    unit: "nats",
    scale: "linear",
    bright: "high",
    per: "token",
  },
  {
    name: "pinrank",
    field: "next_ranks",
    label: "rank",
    unit: "",
    scale: "rank",
    bright: "low",
    per: "token",
  },
]

/** The modes that follow a pin, by name: its log-probability and its rank. */
export function pinModes(
  pinned: string,
  at: (reading: Reading, l: number, t: number) => TokenValue,
): Record<string, Mode> {
  const modes = PINNED.map(statistic => ({
    ...statisticMode({ ...statistic, label: `${statistic.label} of ${pinned}` }),
    value(reading: Reading, l: number, t: number) {
      const { logprob, rank } = at(reading, l, t)
      return statistic.scale == "rank" ? rank : rank == Infinity ? -Infinity : logprob
    },
  }))
  return Object.fromEntries(modes.map((mode, i) => [PINNED[i]!.name, mode]))
}

/** Log-probability and rank of a group: probabilities are added, the rank is the best. */
export function follow(reading: Reading, l: number, t: number, ids: number[]): TokenValue {
  let p = 0
  let best = NaN
  for (const id of ids) {
    const { logprob, rank } = reading.token(l, t, id)
    p += Math.exp(logprob) || 0
    if (rank < best || Number.isNaN(best)) best = rank
  }
  return { logprob: p ? Math.log(p) : NaN, rank: best }
}

/** What to follow at a position: the candidates, which are known in every layer; of a reading that has
 * none, the tokens that were top at any layer: the final one, then by their highest probability. */
export function candidates(reading: Reading, t: number, n = 6): number[] {
  const recorded = reading.candidateIds[t]?.filter(id => id >= 0) ?? []
  if (recorded.length) return recorded.slice(0, n)
  const best = new Map<number, number>()
  const final = reading.finalId(t)
  for (let l = 0; l < reading.L; l++) {
    const id = reading.topId(l, t)
    const p = id == final ? 1 : reading.topLogprob(l, t)
    if (id >= 0 && !(best.get(id)! >= p)) best.set(id, p)
  }
  return [...best.keys()].sort((a, b) => best.get(b)! - best.get(a)!).slice(0, n)
}

/** Row of the first layer from which the final top token stays the top token. */
export function settled(reading: Reading, t: number): number {
  let l = reading.L - 1
  while (l > 0 && reading.topId(l - 1, t) == reading.finalId(t)) l--
  return l
}

export const decade = (exponent: number) =>
  exponent > 3 || exponent < 0 ? "10" + superscript(exponent) : String(10 ** exponent)

/** Ticks of a colour scale: words and their places 0 … 1. */
export function ticks(mode: Mode, low: number, high: number): [text: string, place: number][] {
  if (mode.scale == "yes or no") {
    return [
      [mode.format(0), 0],
      [mode.format(1), 1],
    ]
  }
  const largest = Math.max(low, high)
  return [0, 0.5, 1].map(place => {
    const value = low + place * (high - low)
    // scales end where all but a twentieth of the cells do
    const more = value == largest && mode.scale != "probability" ? "≥" : ""
    if (mode.scale == "rank") return [more + decade(Math.round(value)), place]
    if (mode.scale == "log") {
      const less = place != 0.5 && !more ? "≤" : ""
      return [less + more + shortNumber(10 ** value), place]
    }
    return [mode.scale == "probability" ? Math.round(100 * value) + "%" : more + shortNumber(value), place]
  })
}

/** A number for a tick: few figures, no unit. */
export const shortNumber = (value: number) => String(+value.toPrecision(2)).replace("-", "−")
