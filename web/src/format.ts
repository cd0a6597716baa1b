/* The page's data: a JSON manifest, one gzip'd JSON head per reading (tokens, vocabulary fragment)
 * and one gzip'd block per tile of positions. The writer is src/logitlens/view/page/data.py, which
 * documents the format; ids are the keys everywhere, and a missing value is NaN or -1, never 0. */

export const FORMAT = "logitlens-page"
export const VERSION = 3

/** Field of a tile: name, type (see page/fields.py) and values per cell ("K", "M" or 1). */
type Field = [
  name: string,
  type: "u8" | "f16" | "f16-k" | "f16-l" | "u32" | "rank" | "recent",
  per: "K" | "M" | 1,
]

export interface ReadingManifest {
  label: string
  /** readings of one tokenizer have the same number */
  vocabulary: number
  layers: string[]
  shape: { L: number; T: number; K: number; M: number }
  head: string
  tile: number
  tiles: string[]
  fields: Field[]
  /** [low, high] of each statistic over the whole reading, for the colour scale */
  range: Record<string, [number, number]>
  /** sentences and badges, made where the numbers are made (see page/words.py) */
  about: {
    lens: string
    model: string
    raw: boolean
    check: string
    ok: boolean | null
    text: string[]
    code: string
  }
  meta: Record<string, unknown>
}

/** How several readings stand side by side (made in page/align.py). */
export interface Frame {
  labels: string[]
  /** per reading: runs of [first position or -1, length] */
  cols: number[][][]
  /** per reading: its depth row for every label, or -1 */
  rows: number[][]
}

export interface Manifest {
  format: string
  version: number
  title: string
  options: Record<string, unknown>
  frame: Frame | null
  readings: ReadingManifest[]
}

export interface Source {
  manifest: Manifest
  read(name: string): ArrayBuffer | Promise<ArrayBuffer>
}

interface Head {
  ids: number[]
  next: number[]
  /** null: as its id's piece in the vocabulary */
  pieces: string[]
  track: number[]
  special: number[]
  /** numbers in the prompt, where only a part of it was read; true: all of it */
  positions?: number[] | true
  roles: [number, number, string][]
  vocab: { ids: number[]; pieces: string[]; bytes: Record<string, string> }
}

const HALF = new Float32Array(65536).map((_, i) => {
  const s = i >> 15 ? -1 : 1,
    e = (i >> 10) & 31,
    m = i & 1023
  return e == 31 ? (m ? NaN : s * Infinity) : s * (e ? 2 ** (e - 15) * (1 + m / 1024) : 2 ** -24 * m)
})

const MISSING = 0xffffffff

export async function gunzip(data: ArrayBuffer | Uint8Array): Promise<Uint8Array> {
  const stream = new Blob([data as ArrayBuffer]).stream().pipeThrough(new DecompressionStream("gzip"))
  return new Uint8Array(await new Response(stream).arrayBuffer())
}

type Column = Uint32Array | Uint16Array | Uint8Array

/** Fields of one tile; arrays run slot, depth, position. */
export function untile(src: Uint8Array, fields: Field[], n: number, L: number, K: number, M: number) {
  let at = 0,
    before: Column
  const out: Record<string, Column> = {}
  // undo the byte shuffle: plane b holds byte b of every value
  const take = (count: number, width: number) => {
    const bytes = new Uint8Array(count * width)
    for (let b = 0; b < width; b++) for (let i = b; i < bytes.length; i += width) bytes[i] = src[at++]!
    return width > 2 ? new Uint32Array(bytes.buffer) : width > 1 ? new Uint16Array(bytes.buffer) : bytes
  }
  for (const [name, type, per] of fields) {
    const k = per == "K" ? K : per == "M" ? M : 1,
      row = L * n,
      size = row * k
    let a = take(size, { u8: 1, recent: 1, u32: 4, rank: 4 }[type as string] ?? 2)
    if (type == "recent") {
      // a byte is a place in the list of the ids that its position has shown, counted from its end, or
      // 0 for the next literal
      const literals = take(a.filter(v => !v).length, 4),
        ids = new Uint32Array(size)
      for (let t = 0, next = 0; t < n; t++)
        for (let l = 0, recent: number[] = []; l < L; l++) {
          const cell: number[] = []
          for (let i = l * n + t; i < size; i += row)
            cell.unshift((ids[i] = a[i] ? recent.splice(-a[i]!, 1)[0]! : literals[next++]!))
          recent.push(...cell)
        }
      a = ids
    }
    if (type == "rank")
      for (let r = 0; r < size; r += n) {
        // in the order of the log-probabilities before, each as a step from the one before
        const steps = a.slice(r, r + n)
        let v = 0
        Float64Array.from(steps, (_, i) => before[r + i]! * n + i)
          .sort()
          .forEach((x, i) => (a[r + (x % n)] = v += (steps[i]! >>> 1) ^ -(steps[i]! & 1)))
      }
    // differences from the slot or the depth before; 16 bits wrap
    const step = type == "f16-k" ? row : type == "f16-l" ? n : size
    for (let i = step; i < size; i++) a[i]! += a[i - step]!
    out[name] = before = a
  }
  if (at != src.length) throw Error(`a tile holds ${src.length} bytes where its fields need ${at}`)
  return out
}

/** One reading; a tile's values are missing until it has been inflated (see load). */
export class Reading {
  L: number
  T: number
  K: number
  M: number
  layers: string[]
  vocab = new Map<number, string>()
  bytes = new Map<number, number[]>()
  special: Set<number>
  tiles: (Record<string, Column> | undefined)[] = []
  private asked: Record<number, Promise<void>> = {}
  /** called when a tile has arrived (or with words when it could not be read) */
  changed: (problem?: string) => void = () => {}

  constructor(
    public man: ReadingManifest,
    public head: Head,
    private read: (name: string) => Promise<ArrayBuffer>,
  ) {
    ;({ L: this.L, T: this.T, K: this.K, M: this.M } = man.shape)
    this.layers = man.layers
    this.special = new Set(head.special)
    let id = 0
    head.vocab.ids.forEach((step, i) => this.vocab.set((id += step), head.vocab.pieces[i]!))
    head.pieces = head.pieces.map((p, t) => p ?? this.piece(head.ids[t]!))
    for (const key in head.vocab.bytes)
      this.bytes.set(
        +key,
        head.vocab.bytes[key]!.match(/../g)!.map(b => parseInt(b, 16)),
      )
  }

  /** Inflate the tile of position t (once); resolves when its values can be read. */
  load(t: number) {
    const { tile, tiles, fields } = this.man,
      i = Math.floor(t / tile)
    return (this.asked[i] ??= (async () => {
      try {
        this.tiles[i] = untile(
          await gunzip(await this.read(tiles[i]!)),
          fields,
          Math.min(tile, this.T - i * tile),
          this.L,
          this.K,
          this.M,
        )
        this.changed()
      } catch (e) {
        this.changed(`Positions from ${i * tile} could not be read: ${(e as Error).message}`)
      }
    })())
  }

  private raw(name: string, l: number, t: number, k: number): number | undefined {
    const n = this.man.tile,
      i = Math.floor(t / n)
    return this.tiles[i]?.[name]?.[(k * this.L + l) * Math.min(n, this.T - i * n) + t - i * n]
  }

  /** True once the tile that holds position t has been inflated. */
  ready(t: number) {
    return !!this.tiles[Math.floor(t / this.man.tile)]
  }
  /** A statistic in nats; NaN where missing (or not inflated yet). */
  num(name: string, l: number, t: number, k = 0) {
    return HALF[this.raw(name, l, t, k) ?? 0x7e00]!
  }
  /** A rank; NaN where there is none (stored as 0). */
  rank(name: string, l: number, t: number, k = 0) {
    return this.raw(name, l, t, k) || NaN
  }
  /** Id in slot k of the top, -1 where missing. */
  top(l: number, t: number, k = 0) {
    const v = this.raw("top_ids", l, t, k) ?? MISSING
    return v == MISSING ? -1 : v
  }
  lp(l: number, t: number, k = 0) {
    return this.num("top_logprobs", l, t, k)
  }
  /** Rank of slot k: 1 + number strictly greater (stored only where there are ties). */
  topRank(l: number, t: number, k: number) {
    return this.raw("top_ranks", l, t, k) || k + 1
  }
  /** Place of a token in the top k of a cell, -1 where it is not. */
  slot(l: number, t: number, has: (id: number) => boolean) {
    for (let k = 0; k < this.K; k++) if (has(this.top(l, t, k))) return k
    return -1
  }
  /** Number of a position in its prompt, of which only a part may have been read. */
  at(t: number) {
    return (this.head.positions as number[])?.[t] ?? t
  }
  piece(id: number) {
    return id < 0 ? "" : (this.vocab.get(id) ?? `⟨${id}⟩`)
  }
  /** What the model said about token `id` at a cell: exact if tracked, next, or among the top k. */
  token(l: number, t: number, id: number): { lp: number; rank: number } {
    const m = this.head.track.indexOf(id),
      k = this.slot(l, t, x => x == id)
    return m >= 0
      ? { lp: this.num("track_logprobs", l, t, m), rank: this.rank("track_ranks", l, t, m) }
      : this.head.next[t] == id
        ? { lp: this.num("next_logprobs", l, t), rank: this.rank("next_ranks", l, t) }
        : // else known only to lie below the last slot: infinity tells that its rank is a bound
          k < 0
          ? { lp: NaN, rank: this.ready(t) ? Infinity : NaN }
          : { lp: this.lp(l, t, k), rank: this.topRank(l, t, k) }
  }
}

/** Check the manifest and read every head. Throws an Error whose message is for the reader. */
export async function open({ manifest: m, read }: Source): Promise<Reading[]> {
  if (m?.format != FORMAT || m.version != VERSION)
    throw Error(`This page shows ${FORMAT} ${VERSION}; the data are ${m?.format} ${m?.version}.`)
  return Promise.all(
    m.readings.map(
      async man =>
        new Reading(
          man,
          JSON.parse(new TextDecoder().decode(await gunzip(await read(man.head)))),
          async name => read(name),
        ),
    ),
  )
}

/** Bytes of a base64 text. */
export const fromBase64 = (text: string) => Uint8Array.from(atob(text), c => c.charCodeAt(0))

/** Source over text in the document: <script type="text/plain" data-ll="name">. */
export const embedded = (root: ParentNode, manifest: Manifest): Source => ({
  manifest,
  read(name) {
    const text = root.querySelector(`[data-ll="${name}"]`)?.textContent
    if (!text) throw Error(`the file lacks its part ${name}`)
    return fromBase64(text).buffer as ArrayBuffer
  },
})
