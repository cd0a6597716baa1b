import { defineConfig } from "vite"

// One script without imports and one style sheet: they work from file://, in a notebook's frame and
// behind a strict Content-Security-Policy.
// Names of ours that appear in no data, no style sheet and no DOM interface may be shortened.
const internal = /^(hovered|cursor|seen|strip|stick|space|image|fitted|heads|sides|hatch|locate|reveal|speak|paint|band|headers|fresh|shade|words|mark|need|nrow|ncol|topRank|slot|panes|heres|here|domain|measure|delta|reach|reaches|arrived|sentence|home|pinned|follow|asText|shown|found|grids|gridBox|prompt|live|toast|tools|popup|panel|overview|redraw|panelSoon|stripe|saving|told|tableBox|showTable|results|bind|chips|charts|stale|canvas|locked|block|rgba|ink|xlabel|ranked|colour|dash|lines|unlock|sheets|sheet|point|active|derive|modes|panes|stick|printable|table|strip|fit|zoom|idle|tail|ready|piece|token|man|num|app|say|each|hide|changed|locked|draw|go|places|diff|grid|panes|pin|lock|acts|point|sheets|untile|tell|part|pick|hover|scrolled|strong)$/

export default defineConfig({
  build: {
    outDir: "../src/logitlens/view/page/assets",
    emptyOutDir: false,
    target: "es2022",
    cssTarget: "chrome120",
    minify: "terser",
    terserOptions: { mangle: { properties: { regex: internal, builtins: true } }, compress: { passes: 4, ecma: 2020 as never, unsafe_arrows: true, unsafe: true, unsafe_methods: true, pure_getters: true } },
    lib: { entry: "src/main.ts", name: "logitlens", formats: ["iife"], fileName: () => "page.js", cssFileName: "page" },
  },
})
