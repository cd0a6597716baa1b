// The page has a budget: it travels inside every file and every notebook cell.
import { readFileSync } from "node:fs"
import { gzipSync } from "node:zlib"

const file = "../src/logitlens/view/page/assets/page.js", data = readFileSync(new URL(file, import.meta.url))
const min = data.length, gz = gzipSync(data, { level: 9 }).length
console.log(`page.js ${min} bytes minified (limit 61440), ${gz} gzip'd (limit 20480)`)
if (min > 61440 || gz > 20480) process.exit(1)
