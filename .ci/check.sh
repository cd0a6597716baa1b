#!/usr/bin/env bash
# The checks of .ci/run and `make check`, on the working tree. Fails when any of them fails.
set -euo pipefail
cd "$(dirname "$0")/.."
# Tests start a hundred processes that import torch and transformers. Where an image says that bytecode
# is not to be kept, each would compile them again: 12 seconds instead of 5.
unset PYTHONDONTWRITEBYTECODE
began=$SECONDS
step() { printf '\n== %s (%s s)\n' "$1" "$((SECONDS - began))"; }

step "environment"
make --no-print-directory .venv/.dev
bin=.venv/bin
# The page is tested in a real browser, which Debian calls chromium.
if ! command -v chromium >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  step "browser"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; } >/dev/null
fi

step "lint"
$bin/ruff check .
$bin/ruff format --check .

# Types take one core half a minute; the steps before the tests have the other.
said=$(mktemp)
$bin/pyright >"$said" 2>&1 &
types=$!

step "import contracts"
$bin/lint-imports

step "page: the build gives the committed files; unit tests; size"
(cd web && npm ci --no-audit --no-fund --loglevel=error && npm run --silent check)
git diff --exit-code --stat -- src/logitlens/view/page/assets

step "generated documentation is up to date"
$bin/python docs/generate.py --check

step "types"
wait "$types" || { cat "$said"; exit 1; }
rm "$said"

step "quick tests"
make --no-print-directory test

step "slow tests"
$bin/python -m pytest -q -n 2 --dist worksteal -m "slow or hub" --durations=20

step "done"
