// The page has a budget: it travels inside every file and every notebook cell.
import { readFileSync } from "node:fs"
import { gzipSync } from "node:zlib"

const LIMIT = 60 * 1024
const script = readFileSync(new URL("../src/logitlens/view/page/assets/page.js", import.meta.url))
const size = gzipSync(script, { level: 9 }).length
console.log(`page.js ${script.length} bytes minified, ${size} gzip'd (limit ${LIMIT})`)
if (size > LIMIT) process.exit(1)
