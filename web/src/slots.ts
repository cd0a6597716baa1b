/* Charts that stay where they are while their lines change, each with a menu to save and copy it. */
import { chart, type Plot } from "./chart"
import { h } from "./dom"
import { download, png, toClipboard } from "./export"
import { menu, item } from "./menu"
import { plotCSV, standalone } from "./plotfile"

interface Slot {
  element: HTMLElement
  picture: HTMLElement
  plot: Plot
}

export class Slots {
  private slots: Slot[] = []
  readonly element: HTMLElement

  constructor(
    private say: (text: string) => void,
    label: string,
  ) {
    this.element = h("div.charts", { role: "group", "aria-label": label })
  }

  get width(): number {
    return this.element.clientWidth || 320
  }

  draw(plots: Plot[]) {
    const { slots, element } = this
    while (slots.length > plots.length) slots.pop()!.element.remove()
    plots.forEach((plot, i) => {
      const slot = (slots[i] ??= this.make(plot))
      if (!slot.element.isConnected) element.append(slot.element)
      slot.plot = plot
      slot.picture.replaceChildren(chart(plot))
    })
  }

  private make(plot: Plot): Slot {
    const picture = h("div")
    const slot: Slot = { plot, picture, element: picture }
    const name = () => slot.plot.title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60)
    const svg = () => standalone(picture.firstElementChild as SVGElement)
    const svgFile = () => new Blob([svg().outerHTML], { type: "image/svg+xml" })
    const csvFile = () => new Blob([plotCSV(slot.plot)], { type: "text/csv" })
    const copyText = async (text: string) =>
      this.say((await toClipboard(text, picture)) ? "Copied" : "Copying is not allowed here")
    const copyPicture = async () => {
      try {
        const data = await png(svg())
        await navigator.clipboard.write([new ClipboardItem({ "image/png": data! })])
        this.say("Copied")
      } catch {
        this.say("Copying pictures is not allowed here: save it instead")
      }
    }
    const save = async (suffix: string, data: Blob | Promise<Blob | null>) => {
      const blob = await data
      if (blob) download(`${name()}.${suffix}`, blob)
    }
    const more = menu(
      "",
      "⋯",
      item("Save SVG", () => void save("svg", svgFile())),
      item("Save PNG", () => void save("png", png(svg()))),
      item("Save CSV", () => void save("csv", csvFile())),
      item("Copy as picture", () => void copyPicture()),
      item("Copy as CSV", () => void copyText(plotCSV(slot.plot))),
    )
    more.querySelector("summary")!.setAttribute("aria-label", "Save or copy this chart")
    slot.element = h("div.plot", picture, more)
    return slot
  }
}
