/* A list of choices that opens under its name. */
import { h } from "./dom"

/** A list that opens under its name, and closes when the focus leaves it or with Escape. */
export function menu(style: "form" | "", name: string, ...items: Node[]): HTMLDetailsElement {
  const details = h("details", h("summary", name), h("div", { class: style }, items))
  const close = () => (details.open = false)
  details.addEventListener("focusout", event => {
    if (event.relatedTarget && !details.contains(event.relatedTarget as Node)) close()
  })
  details.onkeydown = event => {
    if (event.key != "Escape" || !details.open) return
    event.stopPropagation()
    close()
    details.querySelector("summary")!.focus()
  }
  // a click elsewhere closes it, as everywhere
  const elsewhere = ({ target }: Event) => {
    if (!details.contains(target as Node)) close()
  }
  details.ontoggle = () => {
    const change = details.open ? "addEventListener" : "removeEventListener"
    document[change]("pointerdown", elsewhere)
  }
  return details
}

/** A choice of a menu, which closes. */
export function item(text: string, action: () => void) {
  const element: HTMLElement = h("button", { type: "button" }, text)
  element.onclick = () => {
    action()
    element.closest("details")!.open = false
  }
  return element
}
