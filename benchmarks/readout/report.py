"""The tables of the benchmarks from the rows alone: the newest row of each case, of one machine a class.

docs/performance.md gets, for each class of machines, the one table that most people want, and one plot;
benchmarks/README.md all the others.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.readout import figures, machine, variants
from benchmarks.readout.contenders import CONTENDERS, STAND_INS

BEGIN, END = "<!-- begin: benchmarks/run.py -->", "<!-- end: benchmarks/run.py -->"
NAMES = {"gpt2": "GPT-2's shape (12 blocks, 768, 50,257)", "128k": "16 blocks, 2,048, 128,256"}
KEYS = (
    "kind", "shape", "tokens", "last", "contender", "threads", "axis", "T", "L", "V", "k"
)  # fmt: skip
WAYS = {
    "mm": "`torch.mm`",
    "linear": "oneDNN's linear",
    "widened": "`torch.mm` of weights widened to float32",
}
FLOOR = "floor: product + forward pass"


def write(rows_path: Path, root: Path) -> None:
    """Replace what is between the marks of both pages under `root`; draw the plots."""
    classes = newest(rows_path)
    if not classes:
        raise SystemExit(f"{rows_path.name} has no rows of today's form: make bench measures them")
    fullest = max(classes.values(), key=len)
    short = [
        block
        for kind, rows in classes.items()
        for block in (*_short(kind, rows), bars(rows) if rows is fullest else "")
    ]
    _fill(root / "docs" / "performance.md", short)
    makers = (who, reading, on_gpu, single, batch, candidates, start, kernels, memory, long, origin)
    full = [
        block
        for kind, rows in classes.items()
        for block in (f"## {kind}", *(make(rows) for make in makers))
    ]
    _fill(root / "benchmarks" / "README.md", full)
    figures.contenders(fullest, root / "docs" / "images" / "contenders.svg")
    figures.scaling(fullest, root / "benchmarks" / "scaling.svg")


def _short(kind: str, rows: list[dict]) -> tuple[str, ...]:
    table = overview(rows)
    return (f"### {kind}", table, origin(rows)) if table else ()


def _fill(page: Path, blocks: list[str]) -> None:
    head, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, tail = rest.split(END)
    written = "\n\n".join(block for block in blocks if block)
    page.write_text(f"{head}{BEGIN}\n\n{written}\n\n{END}{tail}", encoding="utf-8")


def newest(path: Path) -> dict[str, list[dict]]:
    """Class of machines → the last row of each case, in the order the cases first came: of the
    machine of that class that measured last, and of today's form. A row of a prompt has with it, as
    `beside`, the floor that was measured with the same commit, or else the last one: the machine is
    faster in one hour than in another."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if row.get("format") == machine.FORMAT]
    last = {machine.kind_of(row): _place(row) for row in rows}
    found: dict[str, dict[tuple, dict]] = {}
    floors = {at: row for row in rows if (at := _floor_of(row)) and row["contender"] == "floor"}
    by_case = {at[:-1]: row for at, row in floors.items()}
    for row in rows:
        if at := _floor_of(row):
            row["beside"] = floors.get(at, by_case.get(at[:-1]))
        kind = machine.kind_of(row)
        if _place(row) == last[kind]:
            found.setdefault(kind, {})[tuple(row.get(key) for key in KEYS)] = row
    return {kind: list(cases.values()) for kind, cases in found.items()}


def _floor_of(row: dict) -> tuple | None:
    """What a row of a prompt and its floor have in common, the commit last."""
    case = ("shape", "tokens", "last", "threads", "commit")
    return (*_place(row), *(row[key] for key in case)) if row["kind"] == "read" else None


def _place(row: dict) -> tuple:
    return row["machine"], tuple(row["features"]), row.get("gpu")


def who(rows: list[dict]) -> str:
    """What each contender gives, in which environment, and how long its first result takes."""
    compared = [r for r in rows if r["kind"] in ("read", "first") and r["shape"] in NAMES]
    names = _names(compared)
    if not names:
        return ""
    first = {r["contender"]: r for r in rows if r["kind"] == "first"}
    lines = ["**Who reads**", ""]
    lines += ["| | gives, per layer and position | its environment | first result, s |"]
    lines += ["| --- | --- | --- | ---: |"]
    for name in names:
        row = [r for r in compared if r["contender"] == name][-1]
        library = {n: v for n, v in row["versions"].items() if n not in ("python", "torch")}
        took = first.get(name, {})
        seconds = took.get("failed") or (_s(took["p50"]) if "p50" in took else "")
        lines.append(f"| {name} | {row['gives']} | {_words(library)} | {seconds} |")
    return "\n".join(lines)


def bars(rows: list[dict]) -> str:
    if not figures.longest(rows):
        return ""
    return "![Seconds and peak memory of every contender, as bars](images/contenders.svg)"


def overview(rows: list[dict]) -> str:
    """Every contender on every prompt read at every position, on all threads."""
    cases = {key: found for key, found in _cases(rows).items() if not key[1]}
    if not cases:
        return ""
    threads = max(r["threads"] for found in cases.values() for r in found)
    columns = {key: [r for r in cases[key] if r["threads"] == threads] for key in sorted(cases)}
    titles = [f"{list(NAMES)[shape]}: {tokens:,}" for shape, _, tokens in columns]
    lines = [
        f"**Seconds (× floor) to read a prompt of so many tokens**, every position, {_count(threads)}, "
        "beside the floor of the same run; gpt2 is GPT-2's shape in float32, 128k a Llama of 16 "
        "blocks in bfloat16",
        "",
    ]
    lines += ["| | " + " | ".join(titles) + " |", "| --- |" + " ---: |" * len(titles)]
    for name in _names([r for found in columns.values() for r in found]):
        cells = []
        for found in columns.values():
            row = next((r for r in found if r["contender"] == name and "p50" in r), None)
            seconds, ratio = _took(row)
            cells.append(f"{seconds.split(' ')[0]} ({ratio})" if row and ratio else "–")
        lines.append(f"| {FLOOR if name == 'floor' else name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def reading(rows: list[dict]) -> str:
    """One table for each shape and prompt: seconds and ratio to the floor by threads, memory."""
    cases = _cases(rows)
    if not cases:
        return ""
    tables = "\n\n".join(_case(cases[key]) for key in sorted(cases))
    return (
        f"<details><summary>Every case, with spread and memory</summary>\n\n{tables}\n\n</details>"
    )


def _cases(rows: list[dict]) -> dict[tuple, list[dict]]:
    """Rows by (place of the shape, last position alone, tokens)."""
    cases: dict[tuple, list[dict]] = {}
    for row in rows:
        if row["kind"] == "read" and row["shape"] in NAMES:
            key = (list(NAMES).index(row["shape"]), row["last"], row["tokens"])
            cases.setdefault(key, []).append(row)
    return cases


def _names(rows: list[dict]) -> list[str]:
    return [n for n in (*CONTENDERS, *STAND_INS) if any(r["contender"] == n for r in rows)]


def _case(rows: list[dict]) -> str:
    one = rows[0]
    what = f"{one['tokens']:,} tokens" + (", last position" if one["last"] else ", every position")
    threads = _threads(rows)
    lines = [f"**{NAMES[one['shape']]}, {one['dtype']}: {what}**", ""]
    lines += ["| | " + "".join(f"seconds, {_count(n)} (20–80 %) | × floor | " for n in threads)]
    lines[-1] += "peak MB |"
    lines += ["| --- | " + "---: | " * (2 * len(threads) + 1)]
    for name in _names(rows):
        mine = {r["threads"]: r for r in rows if r["contender"] == name}
        cells = [cell for n in threads for cell in _took(mine.get(n))]
        peaks = [r["peak_mb"] for r in mine.values() if r.get("peak_mb") is not None]
        cells.append(f"{max(peaks):,.0f}" if peaks else "")
        lines.append(f"| {FLOOR if name == 'floor' else name} | " + " | ".join(cells) + " |")
    floors = [r for n in threads for r in rows if (r["contender"], r["threads"]) == ("floor", n)]
    said = [_chosen(r) for r in floors if "product" in r]
    return "\n".join([line.rstrip() for line in lines] + (["", " ".join(said)] if said else []))


def _took(row: dict | None) -> list[str]:
    if row is None:
        return ["", ""]
    if "failed" in row:
        return [row["failed"].replace("|", "/"), ""]
    floor = row["beside"] or {}
    ratio = f"{row['p50'] / floor['p50']:.2f}" if "p50" in floor else ""
    return [f"{_s(row['p50'])} ({_s(row['p20'])}–{_s(row['p80'])})", ratio]


def _chosen(row: dict) -> str:
    p = row["product"]
    said = f"Floor, {_count(row['threads'])}: {WAYS[p['way']]} in tiles of {p['rows']:,} × {p['columns']:,}"
    if "product_p50" in row:
        said += f", {_s(row['product_p50'])} s; forward pass {_s(row['forward_p50'])} s"
    return said + "."


def single(rows: list[dict]) -> str:
    """The readout of one position alone."""
    found = [r for r in rows if r["kind"] == "single" and "p50" in r]
    if not found:
        return ""
    columns = list(dict.fromkeys((r["shape"], r["depths"], r["threads"]) for r in found))
    columns.sort(key=lambda c: (list(NAMES).index(c[0]), -c[2]))
    lines = [
        "**One position's residual rows, read out** (no forward pass; milliseconds, × floor)",
        "",
    ]
    heads = [f"{shape}: {depths} rows, {_count(n)}" for shape, depths, n in columns]
    lines += ["| | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(columns)]
    for name in dict.fromkeys(r["contender"] for r in found):
        cells = []
        for shape, _, n in columns:
            at = {r["contender"]: r for r in found if (r["shape"], r["threads"]) == (shape, n)}
            cells.append(
                f"{at[name]['p50'] * 1e3:.1f} ({at[name]['p50'] / at['floor']['p50']:.2f})"
                if name in at
                else ""
            )
        lines.append(
            f"| {'floor: product' if name == 'floor' else name} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def batch(rows: list[dict]) -> str:
    """Short prompts together."""
    found = {r["contender"]: r for r in rows if r["kind"] == "batch"}
    if not found:
        return ""
    said = (
        f"{variants.PROMPTS} prompts of {variants.SHORTEST} to {variants.LONGEST} tokens, GPT-2's shape, "
        "float32; seconds, × floor: one padded forward pass, and the product"
    )
    lines = [
        f"**Short prompts together** ({said})",
        "",
        "| | s | × floor |",
        "| --- | ---: | ---: |",
    ]
    for name, row in found.items():
        lines.append(f"| {name} | {_s(row['p50'])} | {row['p50'] / found['floor']['p50']:.2f} |")
    return "\n".join(lines)


def candidates(rows: list[dict]) -> str:
    """What following candidates costs: the way without them is named before the one with."""
    found = {r["contender"]: r for r in rows if r["kind"] == "candidates"}
    if not found:
        return ""
    said = (
        f"{variants.TOKENS} tokens, every position, GPT-2's shape, float32; seconds, × floor: a forward pass "
        "and the product"
    )
    lines = [f"**Candidates** ({said})", "", "| | s | × floor | × without |"]
    lines.append("| --- | ---: | ---: | ---: |")
    for name, row in found.items():
        without = found.get(name.replace(", 5 ", ", 0 "), row)
        beside = [row["p50"] / other["p50"] for other in (found["floor"], without)]
        lines.append(
            f"| {name} | {_s(row['p50'])} | " + " | ".join(f"{x:.2f}" for x in beside) + " |"
        )
    return "\n".join(lines)


def on_gpu(rows: list[dict]) -> str:
    """The readout alone on a GPU: seconds, and memory beyond rows and weights."""
    found = [r for r in rows if r["kind"] == "gpu"]
    cards = ", ".join(dict.fromkeys(r["gpu"] for r in found))
    lines = [f"**On a GPU** ({cards}): the readout alone, bfloat16", "", "| rows | way | s | MB |"]
    lines.append("| ---: | --- | ---: | ---: |")
    for r in found:
        lines.append(
            f"| {r['T'] * r['L']:,} | {r['contender']} | {r['p50']:.5f} | {r['peak_mb']:.0f} |"
        )
    return "\n".join(lines) if found else ""


def kernels(rows: list[dict]) -> str:
    """The readout alone: seconds beside the product's, for each point of each sweep."""
    found = figures.kernel_rows(rows)
    if not found:
        return ""
    names = list(dict.fromkeys(r["contender"] for r in found))
    lines = [f"**The readout alone** (seconds, {_count(found[0]['threads'])}; 64 positions × 13 rows, "
             "50,257 tokens, k = 10, width 768, float32, where not said otherwise)", ""]  # fmt: skip
    lines += ["| | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for point in dict.fromkeys((r["axis"], r[r["axis"]]) for r in found):
        axis, value = point
        at = {r["contender"]: r for r in found if (r["axis"], r[r["axis"]]) == point}
        cells = [_s(at[name]["p50"]) if name in at else "" for name in names]
        lines.append(f"| {axis} = {value:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n![Seconds of a readout over T, L, V and k](scaling.svg)"


def memory(rows: list[dict]) -> str:
    """Peak memory over the length of the prompt."""
    found = _most_threads([r for r in rows if r["kind"] == "memory"])
    if not found:
        return ""
    lines = ["**Memory over length** (13 rows, width 768, 8,192 tokens, float32, made-up "
             "residuals; what is kept is the reading itself)", ""]  # fmt: skip
    lines += ["| tokens | peak MB | of which kept | beyond it |", "| ---: | ---: | ---: | ---: |"]
    for r in found:
        beyond = r["peak_mb"] - r["result_mb"]
        lines.append(
            f"| {r['tokens']:,} | {r['peak_mb']:.0f} | {r['result_mb']:.0f} | {beyond:.0f} |"
        )
    return "\n".join(lines)


def long(rows: list[dict]) -> str:
    """Long contexts, with and without a cache."""
    found = _most_threads([r for r in rows if r["kind"] == "long"])
    if not found:
        return ""
    lines = [f"**Long contexts** (a random model of the bundled one's shape, its context extended; "
             f"{_count(found[0]['threads'])}; MB beyond the loaded model)", ""]  # fmt: skip
    lines += ["| tokens | | seconds | peak MB | keys and values | Reading | beyond both |"]
    lines += ["| ---: | --- | ---: | ---: | ---: | ---: | ---: |"]
    for r in sorted(found, key=lambda r: r["tokens"]):
        if "failed" in r:
            lines.append(f"| {r['tokens']:,} | {r['contender']} | {r['failed']} | | | | |")
            continue
        beyond = r["peak_mb"] - r["cache_mb"] - r["reading_mb"]
        sizes = (r["peak_mb"], r["cache_mb"], r["reading_mb"], beyond)
        cells = " | ".join(f"{size:,.0f}" for size in sizes)
        lines.append(f"| {r['tokens']:,} | {r['contender']} | {_s(r['p50'])} | {cells} |")
    return "\n".join(lines)


def start(rows: list[dict]) -> str:
    """Time to the first result of the command line."""
    found = _most_threads([r for r in rows if r["kind"] == "start"])
    if not found:
        return ""
    lines = ["**From process start to the first result, on the command line** (bundled model)", ""]
    lines += ["| | seconds, median (20–80 %) |", "| --- | ---: |"]
    for r in found:
        said = r.get("failed") or f"{_s(r['p50'])} ({_s(r['p20'])}–{_s(r['p80'])})"
        lines.append(f"| {r['contender']} | {said} |")
    return "\n".join(lines)


def origin(rows: list[dict]) -> str:
    """Where the rows come from."""
    if not rows:
        return ""
    row = rows[-1]
    commits = ", ".join(dict.fromkeys(r["commit"] for r in rows))
    features = f" ({', '.join(row['features'])})" if row["features"] else ""
    own = [r for r in rows if r.get("environment", "logitlens") == "logitlens"]
    return f"Measured on {row['machine']}{features}; {_versions(own or rows)}; commit {commits}."


def _versions(rows: list[dict]) -> str:
    return _words({n: v for row in rows for n, v in row["versions"].items()})


def _words(versions: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _threads(rows: list[dict]) -> list[int]:
    return sorted({r["threads"] for r in rows}, reverse=True)


def _most_threads(rows: list[dict]) -> list[dict]:
    """Rows measured with the most threads; those of a kind that knows none are all kept."""
    most = max((r.get("threads", 0) for r in rows), default=0)
    return [r for r in rows if r.get("threads", 0) == most]


def _count(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def _s(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds < 1 else f"{seconds:.2f}"
