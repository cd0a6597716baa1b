import { defineConfig } from "vite"

// The prompt box of `logitlens serve`; it stands beside page.js and asks it to draw.
export default defineConfig({
  build: {
    outDir: "../src/logitlens/view/page/assets",
    emptyOutDir: false,
    target: "es2022",
    cssTarget: "chrome120",
    lib: {
      entry: "src/serve.ts",
      name: "logitlensServe",
      formats: ["iife"],
      fileName: () => "serve.js",
      cssFileName: "serve",
    },
  },
})
