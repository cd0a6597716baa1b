/* Colour scales and ink. Scales run dark → bright; a difference runs blue → orange. */

const MAPS: Record<string, string> = {
  // the house maps, as in the terminal and the figures (src/logitlens/view/color.py)
  day:
    "fafaf6f2f6e7e6f2dbd8efd1c8ebcbb9e7c7a9e2c499dcc38ad6c27bd0c16dcac15fc3c151bcc045b5c039adbf" +
    "2fa5be269dbc1f95ba1c8db71b85b51d7cb12174ad246ca82863a32b5b9d2d52972f4a902f42892f3b812e33782d2c702b2567291e5e",
  night:
    "1b1f291f2435232941272e4e2b335b2f3867323f7435467f364e8a365694345f9d3068a52a72ac227bb21785b6" +
    "078eb90098bb00a1bc00aabc00b3bc02bcbb13c4b924cdb735d5b248dcad5de3a673e89d8aec94a1f08ab8f280cef376e3f46ef7f569",
  cividis: "00224e1a386f434e6c61656f7d7c789b9476bcae6cdec958fee838",
  viridis: "440154472d7b3b528b2c728e21918c28ae805ec962addc30fde725",
  light: "08478f4f93c9b9d5e8f6f4f0f3c699dd8433944300",
  dark: "8cc8ff3f86c41f4468262a30653c15b96c22ffb866",
}

export interface Scale {
  /** 256 pixels, little-endian RGBA, for an ImageData */
  rgba: Uint32Array
  css: string[]
  /** black or white, whichever has more contrast: at least 4.5 : 1 on every colour */
  ink: string[]
}

function channel(byte: number): number {
  const v = byte / 255
  return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
}
export const luminance = (r: number, g: number, b: number) =>
  0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b)
export const contrast = (a: number, b: number) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)

const made: Record<string, Scale> = {}
export function scale(name: string): Scale {
  // a name may be anything that an address says
  const known = Object.hasOwn(MAPS, name) ? name : "day"
  return (made[known] ??= make(MAPS[known]!))
}

function make(hex: string): Scale {
  const stops = hex.match(/.{6}/g)!.map(stop => [0, 2, 4].map(i => parseInt(stop.slice(i, i + 2), 16)))
  const rgba = new Uint32Array(256)
  const css: string[] = []
  const ink: string[] = []
  for (let i = 0; i < 256; i++) {
    const x = (i / 255) * (stops.length - 1)
    const low = Math.min(stops.length - 2, Math.floor(x))
    const mix = (c: number) =>
      Math.round(stops[low]![c]! + (stops[low + 1]![c]! - stops[low]![c]!) * (x - low))
    const [r, g, b] = [mix(0), mix(1), mix(2)]
    rgba[i] = (255 << 24) | (b << 16) | (g << 8) | r
    css.push(`rgb(${r},${g},${b})`)
    // black and white reach 4.58 : 1 at worst, where they meet
    ink.push(luminance(r, g, b) > 0.179 ? "#000" : "#fff")
  }
  return { rgba, css, ink }
}

/** Colours of trajectories (Okabe and Ito 2008: distinct for every kind of colour vision). */
export const LINES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b", "#7a5cc2"]
export const DASHES = ["", "6 3", "2 3", "8 3 2 3", "1 4"]
