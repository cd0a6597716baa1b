/* What a cell is worth: the colour modes, pins and candidates. */
import type { Reading } from "./format"
import { count, num, prob, sup } from "./text"

export interface Mode {
  label: string
  /** Infinity: known only to be beyond the last of the top k; NaN: missing */
  val(R: Reading, l: number, t: number): number
  /** [dark end, bright end]; where `log`, in decades */
  dom(R: Reading): [number, number]
  fmt(v: number): string
  log?: boolean
}

/** A group of tokens that counts as one: [index of the reading whose ids these are, ...ids]. */
export type Pin = number[]

/** The final row's likeliest token at a position. */
export const final = (R: Reading, t: number) => R.top(R.L - 1, t)

const nats = (v: number) => num(v) + " nats"
const end = (R: Reading, name: string, i: number) => R.man.range[name]?.[i] ?? 1
const lows =
  (name: string) =>
  (R: Reading): [number, number] => [Math.min(-1, end(R, name, 0)), 0]
const highs =
  (name: string) =>
  (R: Reading): [number, number] => [end(R, name, 1), 0]
const ranked = (label: string, val: Mode["val"]): Mode => ({
  label,
  val,
  log: true,
  dom: R => [Math.log10(Math.max(10, R.K, end(R, "next_ranks", 1))), 0],
  fmt: v => (v == Infinity ? "beyond the top k" : "#" + count(Math.round(v))),
})
const plain = (label: string, val: Mode["val"], dom: Mode["dom"]): Mode => ({ label, val, dom, fmt: nats })

export const MODES: Record<string, Mode> = {
  prob: {
    label: "Probability",
    val: (R, l, t) => Math.exp(R.lp(l, t)),
    dom: () => [0, 1],
    fmt: v => prob(Math.log(v)),
  },
  logprob: plain("Log-probability", (R, l, t) => R.lp(l, t), lows("top_logprobs")),
  final: ranked("Rank of the final token", (R, l, t) => R.token(l, t, final(R, t)).rank),
  entropy: plain("Entropy", (R, l, t) => R.num("entropy", l, t), highs("entropy")),
  kl: plain("KL to the final row", (R, l, t) => R.num("kl", l, t), highs("kl")),
  rank: ranked("Rank of the next token", (R, l, t) => R.rank("next_ranks", l, t)),
  next: plain(
    "Log-probability of the next token",
    (R, l, t) => R.num("next_logprobs", l, t),
    lows("next_logprobs"),
  ),
  agree: {
    label: "Agreement with the final row",
    val: (R, l, t) => (R.top(l, t) < 0 ? NaN : +(R.top(l, t) == final(R, t))),
    dom: () => [-0.25, 1.05],
    fmt: v => (v ? "same token" : "other token"),
  },
}

/** The modes that follow a pin. */
export const pinModes = (
  name: string,
  at: (R: Reading, l: number, t: number) => { lp: number; rank: number },
): Mode[] => [
  plain(
    "Log-probability of " + name,
    (R, l, t) => {
      const v = at(R, l, t)
      return v.rank == Infinity ? -Infinity : v.lp
    },
    lows("next_logprobs"),
  ),
  ranked("Rank of " + name, (R, l, t) => at(R, l, t).rank),
]

/** Log-probability and rank of a group: probabilities are added, the rank is the best. */
export function follow(R: Reading, l: number, t: number, ids: number[]): { lp: number; rank: number } {
  let p = 0,
    rank = NaN
  for (const id of ids) {
    const v = R.token(l, t, id)
    p += Math.exp(v.lp) || 0
    if (v.rank < rank || Number.isNaN(rank)) rank = v.rank
  }
  return { lp: p ? Math.log(p) : NaN, rank }
}

/** Tokens that were top at any depth of a position: the final one, then by their likeliest moment. */
export function candidates(R: Reading, t: number, n = 6): number[] {
  const best = new Map<number, number>(),
    last = final(R, t)
  for (let l = 0; l < R.L; l++) {
    const id = R.top(l, t),
      p = id == last ? 1 : R.lp(l, t)
    if (id >= 0 && !(best.get(id)! >= p)) best.set(id, p)
  }
  return [...best.keys()].sort((a, b) => best.get(b)! - best.get(a)!).slice(0, n)
}

/** First depth from which the final top-1 stays top-1. */
export function settled(R: Reading, t: number): number {
  let l = R.L - 1
  while (l > 0 && R.top(l - 1, t) == final(R, t)) l--
  return l
}

export const decade = (e: number) => (e > 3 || e < 0 ? "10" + sup(e) : String(10 ** e))

/** Ticks of a scale: words and their places 0 … 1. */
export const ticks = (mode: Mode, lo: number, hi: number): [string, number][] =>
  mode.log
    ? [0, 0.5, 1].map(x => [decade(Math.round(lo + x * (hi - lo))), x])
    : [0, 0.5, 1].map(x => [mode.fmt(lo + x * (hi - lo)).replace(" nats", ""), x])
