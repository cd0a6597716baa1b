/* A builder of elements: h("button.round", { onclick }, "text"). Styles are set through the CSSOM, so
 * that a strict Content-Security-Policy holds. */
type Child = Node | string | number | null | undefined | false | Child[]
type Properties = Record<string, unknown>

const isProperties = (value: unknown): value is Properties =>
  !!value && Object.getPrototypeOf(value) == Object.prototype

function build<E extends Element>(element: E, rest: (Child | Properties)[]): E {
  const properties = isProperties(rest[0]) ? rest[0] : {}
  const children = (isProperties(rest[0]) ? rest.slice(1) : rest) as Child[]
  for (const [name, value] of Object.entries(properties)) {
    if (name == "style") (element as unknown as HTMLElement).style.cssText = value as string
    else if (/^on|^value/.test(name)) (element as any)[name] = value
    else if (value != null && value !== false) element.setAttribute(name, value === true ? "" : String(value))
  }
  for (const child of children.flat(9 as 1) as Child[]) {
    if (child != null && child !== false) element.append(child as string)
  }
  return element
}

export function h<K extends keyof HTMLElementTagNameMap>(
  name: K | `${K}.${string}`,
  ...rest: (Child | Properties)[]
): HTMLElementTagNameMap[K] {
  const [tag, ...classes] = name.split(".")
  const element = document.createElement(tag as K)
  if (classes.length) element.className = classes.join(" ")
  return build(element, rest)
}

export const svg = (tag: string, ...rest: (Child | Properties)[]) =>
  build(document.createElementNS("http://www.w3.org/2000/svg", tag), rest)

/** At most one call per frame. */
export function framed(draw: () => void): () => void {
  let waiting = 0
  return () => {
    waiting ||= requestAnimationFrame(() => {
      waiting = 0
      draw()
    })
  }
}

export const clamp = (value: number, low: number, high: number) => Math.max(low, Math.min(high, value))
export const range = (length: number, from = 0) => Array.from({ length }, (_, i) => from + i)
