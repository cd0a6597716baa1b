/* The form of the served page: a text or a chat, how it is read, and how the model writes. */
import { h } from "./dom"
import type { Form, Message, Start } from "./wire"

interface Hooks {
  read(): void
  write(): void
  patch(): void
}

const ROLES = ["system", "user", "assistant"]
/** Settings of a generation: what the form calls them, and what is asked for if nobody changes it. */
const SETTINGS: [name: string, label: string, usual: string, type: "number" | "text"][] = [
  ["max_new_tokens", "tokens", "40", "number"],
  ["temperature", "temperature", "0", "number"],
  ["top_p", "top p", "", "number"],
  ["top_k", "top k", "", "number"],
  ["seed", "seed", "", "number"],
  ["stop", "stop at", "", "text"],
]

const labelled = (text: string, control: HTMLElement) => h("label", h("span.lab", text), control)
const area = (label: string, placeholder: string) =>
  h("textarea", { rows: 2, placeholder, "aria-label": label, spellcheck: "false" })
const line = (label: string, placeholder = "") =>
  h("input", { type: "text", placeholder, "aria-label": label })

export class Fields {
  /** what only a reading has */
  private only: HTMLElement[]
  readonly prompt = area("Prompt", "Type a prompt")
  private turns = h("ol.turns", { hidden: true, "aria-label": "Turns of the chat" })
  private kind = h(
    "select",
    { "aria-label": "Kind of prompt" },
    [
      ["text", "text"],
      ["chat", "chat"],
      ["patch", "patch"],
    ].map(([value, text]) => h("option", { value }, text)),
  )
  private model = h("select", { "aria-label": "Model" })
  private lenses: HTMLInputElement[]
  private top = h("input", { type: "number", min: 1, "aria-label": "Tokens kept in each cell" })
  private track = line("Tokens to track, separated by commas; spaces count", " Paris, Rome")
  private edits = line("Edits, separated by semicolons", "add:layer=5,token= Rome")
  private settings: HTMLInputElement[]
  private corrupted = area("Corrupted prompt", "Corrupted prompt: The Colosseum is in the city of")
  private token = line("Answer of the clean prompt", " Paris")
  private versus = line("Answer of the corrupted prompt", " Rome")
  private patched: HTMLElement
  private go = h("button.go", { type: "submit" }, "Read")
  private write = h("button", { type: "button", title: "let the model write after the prompt" }, "Write")
  readonly element: HTMLFormElement

  constructor(
    { models, loaded, lenses, limits }: Start,
    private hooks: Hooks,
  ) {
    const { model, top, kind } = this
    model.append(...models.map(value => h("option", { value }, value)))
    if (loaded) model.value = loaded
    top.max = String(limits.top)
    top.value = String(Math.min(10, limits.top))
    this.lenses = lenses.map((lens, i) => {
      const box = h("input", { type: "checkbox", value: lens, "aria-label": lens + " lens" })
      box.checked = i == 0
      return box
    })
    this.settings = SETTINGS.map(([name, label, value, type]) =>
      h("input", { type, name, value, step: "any", "aria-label": label }),
    )
    this.patched = h(
      "div.patched",
      { hidden: true },
      this.corrupted,
      h("div.tools", labelled("Answer", this.token), labelled("versus", this.versus)),
    )
    const writing = h(
      "details.settings",
      h("summary", "Writing"),
      h(
        "div.form",
        this.settings.map((input, i) => labelled(SETTINGS[i]![1], input)),
      ),
    )
    const offered = h(
      "fieldset.lenses",
      h("legend.sr", "Lenses"),
      this.lenses.map(box => h("label", box, h("span", box.value))),
    )
    const [many, follow, changes] = [
      labelled("Top", top),
      labelled("Track", this.track),
      labelled("Edit", this.edits),
    ]
    this.only = [offered, many, follow, changes, writing, this.write]
    this.element = h(
      "form.ask",
      this.prompt,
      this.turns,
      this.patched,
      h(
        "div.tools",
        kind,
        labelled("Model", model),
        offered,
        many,
        follow,
        changes,
        writing,
        this.go,
        this.write,
      ),
    )
    this.listen()
  }

  private listen() {
    const { element, prompt, kind, write, hooks } = this
    const submit = () => (kind.value == "patch" ? hooks.patch() : hooks.read())
    element.onsubmit = event => {
      event.preventDefault()
      submit()
    }
    write.onclick = () => hooks.write()
    const onEnter = (event: KeyboardEvent) => {
      // Enter reads; Shift+Enter is a line of the prompt
      if (event.key != "Enter" || event.shiftKey || event.isComposing) return
      event.preventDefault()
      submit()
    }
    prompt.onkeydown = this.corrupted.onkeydown = onEnter
    kind.onchange = () => {
      if (kind.value == "chat" && !this.turns.children.length)
        this.setTurns([{ role: "user", content: prompt.value }])
      this.draw()
    }
  }

  private draw() {
    const { kind } = this
    this.prompt.hidden = kind.value == "chat"
    this.turns.hidden = kind.value != "chat"
    this.patched.hidden = kind.value != "patch"
    for (const part of this.only) part.hidden = kind.value == "patch"
    this.go.textContent = kind.value == "patch" ? "Patch" : "Read"
    this.prompt.placeholder = kind.value == "patch" ? "Clean prompt" : "Type a prompt"
  }

  setBusy(busy: boolean) {
    this.go.ariaDisabled = this.write.ariaDisabled = String(busy)
  }

  private setTurns(messages: Message[]) {
    const add = h("button", { type: "button", onclick: () => this.addTurn() }, "Add a turn")
    this.turns.replaceChildren(...messages.map(message => this.turn(message)), h("li", add))
  }
  private addTurn() {
    const messages = this.messages
    const role = messages.at(-1)?.role == "user" ? "assistant" : "user"
    this.setTurns([...messages, { role, content: "" }])
    this.turns.querySelector<HTMLElement>("li:nth-last-child(2) textarea")!.focus()
  }
  private turn({ role, content }: Message): HTMLElement {
    const select = h(
      "select",
      { "aria-label": "Role" },
      ROLES.map(value => h("option", { value }, value)),
    )
    select.value = role
    const text = area("Content", "")
    text.value = content
    const remove = h(
      "button",
      { type: "button", "aria-label": "Remove this turn", onclick: () => item.remove() },
      "×",
    )
    const item: HTMLElement = h("li", select, text, remove)
    return item
  }
  private get messages(): Message[] {
    return [...this.turns.querySelectorAll("li")].flatMap(item => {
      const role = item.querySelector("select")?.value
      return role ? [{ role, content: item.querySelector("textarea")!.value }] : []
    })
  }

  /** What the form asks for. */
  order(write: boolean): Form {
    const { track, edits } = this
    const split = (text: string, by: string) => (text ? text.split(by) : [])
    return {
      prompt: this.kind.value == "chat" ? this.messages : this.prompt.value,
      model: this.model.value,
      lenses: this.lenses.filter(box => box.checked).map(box => box.value),
      top: Number(this.top.value),
      track: split(track.value, ","),
      edits: split(edits.value, ";").filter(text => text.trim()),
      write: write ? this.writing : null,
    }
  }
  private get writing(): Record<string, number | string> {
    const given = this.settings.filter(input => input.value)
    return Object.fromEntries(
      given.map(input => [input.name, input.type == "number" ? Number(input.value) : input.value]),
    )
  }
  get patchOrder(): object {
    return {
      model: this.model.value,
      clean: this.prompt.value,
      corrupted: this.corrupted.value,
      token: this.token.value,
      versus: this.versus.value,
    }
  }

  /** Show what a reading was asked with. */
  fill(order: Form, text: string, lenses: string[]) {
    const { prompt } = order
    const chat = typeof prompt != "string" && typeof prompt[0] == "object"
    this.kind.value = chat ? "chat" : "text"
    if (chat) this.setTurns(prompt as Message[])
    else this.prompt.value = typeof prompt == "string" ? prompt : text
    this.model.value = order.model
    for (const box of this.lenses) box.checked = lenses.includes(box.value)
    this.top.value = String(order.top)
    // ids were pinned; what was typed is text
    this.track.value = order.track.filter(token => typeof token == "string").join()
    this.edits.value = order.edits.join(";")
    for (const input of this.settings) {
      if (order.write) input.value = String(order.write[input.name] ?? "")
    }
    this.draw()
  }
}
