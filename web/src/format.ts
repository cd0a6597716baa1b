/* The page's data: a JSON manifest, one gzip'd JSON head per reading (tokens, vocabulary fragment) and
 * one gzip'd block per tile of positions. The writer is src/logitlens/view/page/data.py, which documents
 * the format. Ids are the keys everywhere, and a missing value is NaN or -1, never 0.
 *
 * l, t and k are places along the axes L, T and K of the arrays, as in Python: the row of a layer, a
 * position, a slot of the top k. */

export const FORMAT = "logitlens-page"
export const VERSION = 3

/** An array of a tile: name, type (see page/fields.py) and values per cell (1, or an axis of the shape). */
type Field = [name: string, type: FieldType, per: keyof Shape | 1]
type FieldType = "u8" | "f16" | "f16-k" | "f16-l" | "f32" | "u32" | "rank" | "recent"

/** A statistic to show: what the colour menu, the card, the charts and CSV offer. */
export interface Statistic {
  name: string
  /** the array it is read from, or what values.ts derives from the top k */
  field: string
  label: string
  unit: string
  /** how values are shown and spread over the colours */
  scale: "probability" | "linear" | "log" | "rank" | "yes or no"
  /** the end that is bright: where the model is sure, or has settled */
  bright: "high" | "low"
  /** whether it belongs to the cell or to one token */
  per: "cell" | "token"
}

export interface ReadingManifest {
  label: string
  /** readings of one tokenizer have the same number */
  vocabulary: number
  layers: string[]
  shape: Shape
  head: string
  tile: number
  tiles: string[]
  fields: Field[]
  /** [low, high] of arrays over the whole reading, for the colour scale */
  range: Record<string, [number, number]>
  /** sentences and badges, made where the numbers are made (see page/words.py) */
  about: {
    lens: string
    model: string
    note: string
    edited: string
    check: string
    ok: boolean | null
    text: string[]
    code: string
  }
  meta: Record<string, unknown>
}

interface Shape {
  L: number
  T: number
  K: number
  C: number
  M: number
}

/** How several readings are put side by side (made in page/align.py). */
export interface Frame {
  layers: string[]
  /** per reading: runs of [first position or -1, length] */
  columns: [start: number, length: number][][]
  /** per reading: its row for every layer, or -1 */
  rows: number[][]
}

export interface Manifest {
  format: string
  version: number
  title: string
  options: Record<string, unknown>
  statistics: Statistic[]
  frame: Frame | null
  readings: ReadingManifest[]
}

export interface Source {
  manifest: Manifest
  read(name: string): ArrayBuffer | Promise<ArrayBuffer>
}

interface Head {
  arrays: {
    ids: number[]
    next_ids: number[]
    candidate_ids: number[][]
    track_ids: number[]
    generated?: boolean[]
    section?: string[]
  }
  /** null: as its id's piece in the vocabulary */
  pieces: (string | null)[]
  special: number[]
  /** numbers in the prompt, where only a part of it was read; true: all of it */
  positions?: number[] | true
  roles: [start: number, stop: number, role: string][]
  vocab: { ids: number[]; pieces: string[]; bytes: Record<string, string> }
}

/** Every half-precision number, by its bits. */
const HALF = new Float32Array(65536).map((_, bits) => {
  const sign = bits >> 15 ? -1 : 1
  const exponent = (bits >> 10) & 31
  const fraction = bits & 1023
  if (exponent == 31) return fraction ? NaN : sign * Infinity
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction)
})

const MISSING = 0xffffffff

export async function gunzip(data: ArrayBuffer): Promise<Uint8Array> {
  const stream = new Blob([data]).stream().pipeThrough(new DecompressionStream("gzip"))
  return new Uint8Array(await new Response(stream).arrayBuffer())
}

type Column = Uint32Array | Uint16Array | Uint8Array | Float32Array

const WIDTH: Partial<Record<FieldType, number>> = { u8: 1, recent: 1, u32: 4, f32: 4, rank: 4 }

/** The arrays of one tile of n positions; they run slot, layer, position. */
export function unpackTile(bytes: Uint8Array, fields: Field[], n: number, shape: Shape) {
  const columns: Record<string, Column> = {}
  let at = 0
  let previous: Column
  /** Undo the byte shuffle: plane b holds byte b of every value. */
  const take = (count: number, width: number): Column => {
    const out = new Uint8Array(count * width)
    for (let b = 0; b < width; b++) {
      for (let i = b; i < out.length; i += width) out[i] = bytes[at++]!
    }
    return width == 4 ? new Uint32Array(out.buffer) : width == 2 ? new Uint16Array(out.buffer) : out
  }
  for (const [name, type, per] of fields) {
    const row = shape.L * n
    const size = row * (per == 1 ? 1 : shape[per])
    let values = take(size, WIDTH[type] ?? 2)
    if (type == "f32") values = new Float32Array(values.buffer)
    if (type == "recent") {
      const literals = take(values.filter(place => !place).length, 4)
      values = replay(values, literals, n, row)
    }
    if (type == "rank") unsortRanks(values, previous!, n)
    // differences from the slot or the layer before; 16 bits wrap
    const step = type == "f16-k" ? row : type == "f16-l" ? n : size
    for (let i = step; i < size; i++) values[i]! += values[i - step]!
    columns[name] = previous = values
  }
  if (at != bytes.length) throw Error(`a tile holds ${bytes.length} bytes where its fields need ${at}`)
  return columns
}

/** Ids of a tile. A place counts from the end of the list of ids that its position has shown (each leaves
 * the list when it is named and comes back at its end); 0 is the next literal. */
function replay(places: Column, literals: Column, n: number, row: number): Uint32Array {
  const ids = new Uint32Array(places.length)
  let next = 0
  for (let t = 0; t < n; t++) {
    const recent: number[] = []
    for (let cell = t; cell < row; cell += n) {
      const shown: number[] = []
      for (let i = cell; i < ids.length; i += row) {
        ids[i] = places[i] ? recent.splice(-places[i]!, 1)[0]! : literals[next++]!
        shown.unshift(ids[i]!)
      }
      recent.push(...shown)
    }
  }
  return ids
}

/** Ranks are stored row by row in the order of the log-probabilities before, as zigzag steps. */
function unsortRanks(values: Column, logprobs: Column, n: number) {
  for (let start = 0; start < values.length; start += n) {
    const steps = values.slice(start, start + n)
    // a value and its place in one number, so that they are sorted together
    const order = Float64Array.from(steps, (_, i) => logprobs[start + i]! * n + i).sort()
    let rank = 0
    order.forEach((key, i) => {
      rank += (steps[i]! >>> 1) ^ -(steps[i]! & 1)
      values[start + (key % n)] = rank
    })
  }
}

/** One reading; a tile's values are missing until it has been inflated (see load). */
export class Reading {
  readonly L: number
  T: number
  readonly K: number
  readonly ids: number[]
  /** the token that follows each position, -1 for none */
  readonly nextIds: number[]
  /** per position, the tokens that its last row puts first, which are followed through every layer */
  readonly candidateIds: number[][]
  readonly trackIds: number[]
  /** whether the model wrote the token itself */
  readonly generated: boolean[]
  /** of a chat: template, content, thinking, answer; else nothing */
  readonly section: string[]
  readonly pieces: string[]
  readonly special: Set<number>
  vocab = new Map<number, string>()
  /** bytes of the tokens that are not whole characters */
  readonly bytes = new Map<number, number[]>()
  /** called when a tile has arrived (or with words when it could not be read) */
  changed: (problem?: string) => void = () => {}
  private tiles: (Record<string, Column> | undefined)[] = []
  private loading: Promise<void>[] = []
  private types: Record<string, FieldType>
  /** columns that came later, each a reading of one position */
  private later = new Map<number, Reading>()

  constructor(
    readonly manifest: ReadingManifest,
    readonly head: Head,
    private read: (name: string) => Promise<ArrayBuffer>,
  ) {
    ;({ L: this.L, T: this.T, K: this.K } = manifest.shape)
    const { arrays } = head
    this.ids = arrays.ids
    this.nextIds = arrays.next_ids
    this.candidateIds = arrays.candidate_ids
    this.trackIds = arrays.track_ids
    this.generated = arrays.generated ?? this.ids.map(() => false)
    this.section = arrays.section ?? this.ids.map(() => "")
    this.types = Object.fromEntries(manifest.fields.map(([name, type]) => [name, type]))
    this.special = new Set(head.special)
    let id = 0
    head.vocab.ids.forEach((step, i) => {
      id += step
      this.vocab.set(id, head.vocab.pieces[i]!)
    })
    this.pieces = head.pieces.map((piece, t) => piece ?? this.piece(this.ids[t]!))
    for (const [key, hex] of Object.entries(head.vocab.bytes)) {
      this.bytes.set(
        +key,
        hex.match(/../g)!.map(byte => parseInt(byte, 16)),
      )
    }
  }

  /** Put a column after those that are there, or in the place of the one of its position. */
  append(part: Reading) {
    const number = part.positionNumber(0)
    let t = this.ids.findIndex((_, other) => this.positionNumber(other) == number)
    if (t < 0) t = this.T++
    const { ids, nextIds, candidateIds, pieces, generated, section } = this
    ids[t] = part.ids[0]!
    nextIds[t] = part.nextIds[0]!
    candidateIds[t] = part.candidateIds[0]!
    pieces[t] = part.pieces[0]!
    generated[t] = part.generated[0]!
    section[t] = part.section[0]!
    if (Array.isArray(this.head.positions)) this.head.positions[t] = number
    part.vocab.forEach((piece, id) => this.vocab.set(id, piece))
    part.bytes.forEach((bytes, id) => this.bytes.set(id, bytes))
    part.special.forEach(id => this.special.add(id))
    for (const [, , role] of part.head.roles)
      if (!this.head.roles.some(([start]) => start == t)) this.openTurn(t, role)
    this.later.set(t, part)
  }
  private openTurn(t: number, role: string) {
    const { roles } = this.head
    const last = roles.at(-1)
    if (last?.[2] == role && last[1] == t) last[1] = t + 1
    else roles.push([t, t + 1, role])
  }

  /** Inflate the tile of position t (once); resolves when its values can be read. */
  load(t: number): Promise<void> {
    const later = this.later.get(t)
    if (later) return later.load(0)
    const index = Math.floor(t / this.manifest.tile)
    return (this.loading[index] ??= this.inflate(index))
  }

  private async inflate(index: number) {
    const { tile, tiles, fields, shape } = this.manifest
    try {
      const bytes = await gunzip(await this.read(tiles[index]!))
      this.tiles[index] = unpackTile(bytes, fields, Math.min(tile, shape.T - index * tile), shape)
      this.changed()
    } catch (error) {
      this.changed(`Positions from ${index * tile} could not be read: ${(error as Error).message}`)
    }
  }

  private raw(name: string, l: number, t: number, k: number): number | undefined {
    const later = this.later.get(t)
    if (later) return later.raw(name, l, 0, k)
    const { tile } = this.manifest
    const index = Math.floor(t / tile)
    const n = Math.min(tile, this.manifest.shape.T - index * tile)
    return this.tiles[index]?.[name]?.[(k * this.L + l) * n + t - index * tile]
  }

  /** True once the tile that holds position t has been inflated. */
  ready(t: number): boolean {
    return !!(this.later.get(t)?.ready(0) ?? this.tiles[Math.floor(t / this.manifest.tile)])
  }
  /** A value of an array; NaN where missing (or not inflated yet). */
  value(name: string, l: number, t: number, k = 0): number {
    const raw = this.raw(name, l, t, k)
    if (raw == null) return NaN
    const type = this.types[name]!
    if (type.startsWith("f16")) return HALF[raw]!
    // there is no rank 0: it says that there is none
    if (type == "rank") return raw || NaN
    return type == "u32" && raw == MISSING ? NaN : raw
  }
  /** Id in slot k of the top, -1 where missing. */
  topId(l: number, t: number, k = 0): number {
    const id = this.raw("top_ids", l, t, k) ?? MISSING
    return id == MISSING ? -1 : id
  }
  topLogprob(l: number, t: number, k = 0): number {
    return this.value("top_logprobs", l, t, k)
  }
  /** Rank of slot k: 1 + number strictly greater (stored only where there are ties). */
  topRank(l: number, t: number, k: number): number {
    return this.raw("top_ranks", l, t, k) || k + 1
  }
  /** The slot of the top k of a cell whose id fits, -1 where none does. */
  slot(l: number, t: number, fits: (id: number) => boolean): number {
    for (let k = 0; k < this.K; k++) if (fits(this.topId(l, t, k))) return k
    return -1
  }
  /** Id that the last row puts first at a position. */
  finalId(t: number): number {
    return this.topId(this.L - 1, t)
  }
  /** Number of a position in its prompt, of which only a part may have been read. */
  positionNumber(t: number): number {
    return (this.head.positions as number[] | undefined)?.[t] ?? t
  }
  layer(l: number): string {
    return this.manifest.layers[l]!
  }
  piece(id: number): string {
    return id < 0 ? "" : (this.vocab.get(id) ?? `⟨${id}⟩`)
  }
  /** What a cell says of token `id`: exact if it is tracked, a candidate, the next one, or among the top
   * k; else its rank is Infinity, which means below the last slot. */
  token(l: number, t: number, id: number): TokenValue {
    const exact = (family: string, slot: number): TokenValue => ({
      logprob: this.value(`${family}_logprobs`, l, t, slot),
      rank: this.value(`${family}_ranks`, l, t, slot),
    })
    const m = this.trackIds.indexOf(id)
    if (m >= 0) return exact("track", m)
    const c = this.candidateIds[t]!.indexOf(id)
    if (c >= 0) return exact("candidate", c)
    if (this.nextIds[t] == id) return exact("next", 0)
    const k = this.slot(l, t, top => top == id)
    if (k >= 0) return { logprob: this.topLogprob(l, t, k), rank: this.topRank(l, t, k) }
    return { logprob: NaN, rank: this.ready(t) ? Infinity : NaN }
  }
}

export interface TokenValue {
  logprob: number
  rank: number
}

/** Check the manifest and read every head. Throws an Error whose message is for the reader. */
export async function open({ manifest, read }: Source): Promise<Reading[]> {
  if (manifest?.format != FORMAT || manifest.version != VERSION) {
    const found = `${manifest?.format} ${manifest?.version}`
    throw Error(`This page shows ${FORMAT} ${VERSION}; the data are ${found}.`)
  }
  return Promise.all(
    manifest.readings.map(async reading => {
      const head = JSON.parse(new TextDecoder().decode(await gunzip(await read(reading.head))))
      return new Reading(reading, head, async name => read(name))
    }),
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
    return fromBase64(text).buffer
  },
})
