/* A chart as a file: its numbers as CSV, and its picture with the colours in it. */
import type { Plot } from "./chart"
import { csvLines } from "./export"
import { svg } from "./dom"

/** One row for each place, one column for each line. */
export function plotCSV({ xs, xlabel, ylabel, lines, axis }: Plot): string {
  // log-probabilities are drawn; a probability is what people ask for
  const value = (y: number) => (axis == "probability" ? Math.exp(y) : y)
  const head = [xlabel, ...lines.map(({ name, suffix }) => `${ylabel} of ${name}${suffix}`)]
  return csvLines([head, ...xs.map((x, i) => [x, ...lines.map(line => value(line.ys[i]!))])])
}

const INK: Record<string, [attribute: string, colour: string]> = {
  t: ["fill", "#1a1d21"],
  n: ["fill", "#1a1d21"],
  g: ["stroke", "#dfe3e8"],
  m: ["stroke", "#596068"],
}

/** A copy that needs no style sheet, dark on white. */
export function standalone(picture: SVGElement): SVGElement {
  const copy = picture.cloneNode(true) as SVGElement
  const width = picture.getAttribute("width")!
  const height = picture.getAttribute("height")!
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg")
  copy.setAttribute("font-family", "system-ui,'Segoe UI','Noto Sans',sans-serif")
  copy.setAttribute("font-size", "10.5")
  copy.prepend(svg("rect", { width, height, fill: "#fff" }))
  for (const element of copy.querySelectorAll("text,path")) {
    const [attribute, colour] = INK[element.getAttribute("class") ?? ""] ?? ["", ""]
    if (attribute) element.setAttribute(attribute, colour)
    else if (element.tagName == "text") element.setAttribute("fill", "#596068")
    if (element.classList.contains("t")) {
      element.setAttribute("font-weight", "600")
      element.setAttribute("font-size", "12")
    }
    if (element.classList.contains("m")) element.setAttribute("stroke-dasharray", "2 3")
    element.removeAttribute("class")
  }
  return copy
}
