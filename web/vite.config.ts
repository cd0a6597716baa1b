import { defineConfig } from "vite"

// One script without imports and one style sheet: they work from file://, in a notebook's frame and
// behind a strict Content-Security-Policy.
export default defineConfig({
  build: {
    outDir: "../src/logitlens/view/page/assets",
    emptyOutDir: false,
    target: "es2022",
    cssTarget: "chrome120",
    lib: {
      entry: "src/main.ts",
      name: "logitlens",
      formats: ["iife"],
      fileName: () => "page.js",
      cssFileName: "page",
    },
  },
})
