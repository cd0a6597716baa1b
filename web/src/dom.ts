/* A builder of elements: h("button.round", { onclick }, "text"). Styles are set through the CSSOM,
 * so that a strict Content-Security-Policy holds. The source is written for its size where it costs
 * no clarity: the page has a budget (see size.mjs). */
type Kid = Node | string | number | null | undefined | false | Kid[]
type Props = Record<string, unknown>

function build<E extends Element>(e: E, rest: unknown[]): E {
  const own = rest[0] && Object.getPrototypeOf(rest[0]) == Object.prototype ? (rest.shift() as Props) : {}
  for (const k in own) {
    const v = own[k]
    if (k == "style") (e as unknown as HTMLElement).style.cssText = v as string
    else if (/^on|^value/.test(k)) (e as any)[k] = v
    else if (v != null && v !== false) e.setAttribute(k, v === true ? "" : String(v))
  }
  e.append(...(((rest as Kid[]).flat(9 as 1) as Kid[]).filter(x => x != null && x !== false) as string[]))
  return e
}

export function h<K extends keyof HTMLElementTagNameMap>(
  name: K | `${K}.${string}`,
  ...rest: (Kid | Props)[]
): HTMLElementTagNameMap[K] {
  const [tag, ...cls] = name.split("."),
    e = document.createElement(tag as K)
  if (cls[0]) e.className = cls.join(" ")
  return build(e, rest)
}

export const svg = (tag: string, ...rest: (Kid | Props)[]) =>
  build(document.createElementNS("http://www.w3.org/2000/svg", tag), rest)

/** At most one call per frame. */
export function framed(f: () => void): () => void {
  let waiting = 0
  return () => {
    waiting ||= requestAnimationFrame(() => {
      waiting = 0
      f()
    })
  }
}

export const clamp = (v: number, lo: number, hi: number) => Math.max(lo, Math.min(hi, v))
export const range = (n: number, from = 0) => Array.from({ length: n }, (_, i) => from + i)
