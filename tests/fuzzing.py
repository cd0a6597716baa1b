"""Mutated inputs of every format, with fixed seeds, read in a process whose memory is limited.

    python -m tests.fuzzing SEED FORMAT=COUNT …

prints one line of JSON for each format: how many were read, refused in one clean line, or ended
otherwise, and the first few of the last kind. Each format has a process of its own, a copy of one that
has loaded torch and transformers. `test_fuzzing.py` runs it; docs/reliability.md shows the figures.
"""

from __future__ import annotations

import copy
import gzip
import json
import os
import random
import resource
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

ROOM = 256 << 20  # bytes that reading a mutated file of a few KB may ask for

HOSTILE = [
    None, True, False, 0, -1, 1, 3.5, 1e308, -0.0, 2**31, 2**63, 10**30, 10**9, "", "x", "5", "٣", "\ud800",
    "a" * 300, [], {}, [[]], [None], {"a": {"b": []}}, [1, [2, [3]]], [10**9] * 3, float("nan"), float("inf"),
]  # fmt: skip


def mutate_json(value, rng: random.Random):
    """The value with one to three of its nodes replaced, dropped, doubled or renamed."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        holders = []
        stack = [value]
        while stack:
            node = stack.pop()
            if isinstance(node, dict):
                holders += [(node, key) for key in node]
                stack += list(node.values())
            elif isinstance(node, list):
                holders += [(node, i) for i in range(min(len(node), 50))]
                stack += node[:50]
        if not holders:
            return copy.deepcopy(rng.choice(HOSTILE))
        holder, key = rng.choice(holders)
        what = rng.random()
        if what < 0.7:
            holder[key] = copy.deepcopy(rng.choice(HOSTILE))
        elif what < 0.8 and isinstance(holder, dict):
            del holder[key]
        elif what < 0.9 and isinstance(holder, dict):
            holder[rng.choice(["x", "", "1e9", "٣", str(key) * 2])] = holder.pop(key)
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(rng.choice(HOSTILE)))
        else:
            holder[key] = [holder[key]] * rng.choice([2, 50])
    return value


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """The bytes cut, flipped, spliced, or with a run of them overwritten."""
    out = bytearray(data)
    what = rng.random()
    if what < 0.2:
        return bytes(out[: rng.randrange(len(out) + 1)])
    if what < 0.7:
        for _ in range(rng.choice([1, 1, 2, 8])):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        return bytes(out)
    start, length = rng.randrange(len(out)), rng.randrange(1, 64)
    if what < 0.8:
        del out[start : start + length]
    elif what < 0.9:
        out[start : start + length] = bytes(rng.randrange(256) for _ in range(length))
    else:
        out[start:start] = out[rng.randrange(len(out)) :][:length] * rng.choice([1, 100])
    return bytes(out)


def _json_text(value, rng: random.Random) -> bytes:
    text = json.dumps(value)  # NaN and Infinity are written as Python does
    if rng.random() < 0.05:
        text = "[" * 5000 + text
    if rng.random() < 0.05:
        text = text.replace("1", "1" * 5000, 1)
    return text.encode("utf-8", "surrogatepass")


def reading_json(place: Path, rng: random.Random):
    from logitlens import Reading
    from tests.readings import random_reading

    good = random_reading(L=3, T=4, K=3, M=1).to_dict()

    def case():
        data = _json_text(mutate_json(good, rng), rng)
        (place / "r.json").write_bytes(mutate_bytes(data, rng) if rng.random() < 0.3 else data)
        _look(Reading.load(place / "r.json"), rng)

    return case


def reading_parquet(place: Path, rng: random.Random):
    import pyarrow.parquet as pq

    from logitlens import Reading
    from tests.readings import random_reading

    reading = random_reading(L=3, T=4, K=3, M=1)
    good = reading.save(place / "good.parquet").read_bytes()
    table = reading.to_arrow()
    header = json.loads(table.schema.metadata[b"logitlens.reading"])

    def case():
        path = place / "r.parquet"
        if rng.random() < 0.5:
            path.write_bytes(mutate_bytes(good, rng))
        else:
            changed = _json_text(mutate_json(header, rng), rng)
            other = table.replace_schema_metadata({"logitlens.reading": changed})
            if rng.random() < 0.4:
                name = rng.choice(other.column_names)
                at = other.column_names.index(name)
                column = rng.choice([table.column(rng.choice(table.column_names)), None])
                other = (
                    other.remove_column(at)
                    if column is None
                    else other.set_column(at, name, column)
                )
            pq.write_table(other, path)
        _look(Reading.load(path), rng)

    return case


def page_html(place: Path, rng: random.Random):
    from logitlens.view import page
    from tests.readings import random_reading

    good = page.html([random_reading(L=3, T=4, K=3, M=1)])
    start = good.index('data-ll="manifest">') + len('data-ll="manifest">')
    stop = good.index("</script>", start)
    manifest = json.loads(good[start:stop])
    block = '<script type="text/plain" data-ll="0.0">'
    at = good.index(block) + len(block)
    end = good.index("</script>", at)

    def case():
        import base64

        what = rng.random()
        if what < 0.6:
            text = _json_text(mutate_json(manifest, rng), rng).decode("utf-8", "replace")
            text = good[:start] + text.replace("<", "\\u003c") + good[stop:]
        elif what < 0.8:
            inner = gzip.decompress(base64.b64decode(good[at:end]))
            bomb = inner * 2000 if rng.random() < 0.1 else mutate_bytes(inner, rng)
            text = good[:at] + base64.b64encode(gzip.compress(bomb)).decode() + good[end:]
        else:
            cut = start - 200
            data = mutate_bytes(good[cut:].encode(), rng)
            text = good[:cut] + data.decode("utf-8", "replace")
        (place / "r.html").write_text(text, encoding="utf-8", errors="surrogatepass")
        for reading in page.load(place / "r.html"):
            _look(reading, rng)

    return case


def _look(reading, rng: random.Random) -> None:
    """What loads must be shown: by one view, chosen at random, and saved again."""
    from logitlens.view import page, terminal

    view = rng.randrange(3)
    if view == 0:
        terminal.text(reading, width=80)
    elif view == 1:
        page.html([reading])
    else:
        repr(reading), reading.to_dict(), reading.settled()


def corpus(place: Path, rng: random.Random):
    import logitlens
    from logitlens.fit import corpus as corpora
    from tests.models import tiny_gpt2, tiny_tokenizer

    model = logitlens.load(tiny_gpt2(), tokenizer=tiny_tokenizer())
    lines = [{"text": "The Eiffel Tower is in Paris"}, {"ids": [1, 2, 3]}, {"text": "a b c"}]
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a b", "c"], "n": [1, 2]}), place / "good.parquet")
    parquet = (place / "good.parquet").read_bytes()
    text = gzip.compress(b"one\n\ntwo words\n\nthree" * 20)

    def case():
        kind = rng.choice(["jsonl", "parquet", "txt.gz", "txt"])
        path = place / f"c.{kind}"
        if kind == "jsonl":
            path.write_bytes(b"\n".join(_json_text(mutate_json(line, rng), rng) for line in lines))
        elif kind == "parquet":
            path.write_bytes(mutate_bytes(parquet, rng))
        elif kind == "txt.gz":
            path.write_bytes(mutate_bytes(text, rng))
        else:
            path.write_bytes(mutate_bytes(b"one\n\ntwo w\xc3\xb6rds" * 9, rng))
        field = rng.choice(["text", "n"]) if kind == "parquet" else "text"
        corpora.read(path, model, field=field, max_tokens=500)
        path.unlink()

    return case


def facts(place: Path, rng: random.Random):
    import logitlens
    from logitlens.fit import facts as reading
    from tests.models import tiny_gpt2, tiny_tokenizer

    model = logitlens.load(tiny_gpt2(), tokenizer=tiny_tokenizer())
    lines = [{"prompt": "The Eiffel Tower is in", "answer": " Paris", "relation": "capital"}]
    items = {"items": [{"prompt": "In", "intermediates": ["Paris", "city"]}]}

    def case():
        kind = rng.choice(["json", "jsonl"])
        path = place / f"f.{kind}"
        data = _json_text(mutate_json(items if kind == "json" else lines[0], rng), rng)
        path.write_bytes(mutate_bytes(data, rng) if rng.random() < 0.2 else data)
        reading.read(path, model)

    return case


def checkpoint(place: Path, rng: random.Random):
    import torch

    from logitlens.fit.checkpoint import NAME, Folder

    identity = {"corpus": "abc", "process": 0, "settings": {"lr": 1.0}}
    state = {"step": 3, "maps": {"0": torch.zeros(4, 4)}, "best": [1.0, 2.0]}
    folder = Folder(place, identity)
    folder.save(state)
    path = place / NAME
    good = path.read_bytes()

    def case():
        if rng.random() < 0.6:
            path.write_bytes(mutate_bytes(good, rng))
        else:
            data = {"identity": dict(identity), "state": dict(state)}
            holder = data if rng.random() < 0.4 else data[rng.choice(["identity", "state"])]
            holder[rng.choice(list(holder))] = copy.deepcopy(rng.choice(HOSTILE))
            torch.save(data, path)
        folder.load("tuned.safetensors")

    return case


def lens(place: Path, rng: random.Random):
    """A lens file of ours: its header of JSON within a header of JSON, or its bytes."""
    import struct

    from logitlens.lenses import open_lens, save
    from tests.lenses import tiny
    from tests.lenses.test_store import tuned

    path = place / "tuned.safetensors"
    good = save(tuned(tiny.gpt2()), path).read_bytes()
    end = 8 + struct.unpack("<Q", good[:8])[0]
    header = json.loads(good[8:end])
    ours = json.loads(header["__metadata__"]["logitlens"])

    def case():
        what, changed = rng.random(), header
        if what < 0.3:
            path.write_bytes(mutate_bytes(good[:end], rng) + good[end:])
            return _describe(open_lens(path))
        if what < 0.4:
            path.write_bytes(mutate_bytes(good, rng))
            return _describe(open_lens(path))
        if what < 0.8:
            text = _json_text(mutate_json(ours, rng), rng).decode("utf-8", "replace")
            changed = {**header, "__metadata__": {"logitlens": text}}
        else:
            changed = mutate_json(header, rng)
        text = json.dumps(changed).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + good[end:])
        return _describe(open_lens(path))

    return case


def jacobian_pt(place: Path, rng: random.Random):
    """A published Jacobian file: its bytes, its pickle, or entries of other types."""
    import torch

    from logitlens.lenses import open_lens
    from tests.lenses import tiny
    from tests.lenses.test_published import jacobian_file

    path = place / "lens.pt"
    good = jacobian_file(path, tiny.gpt2()).read_bytes()
    state = torch.load(path, weights_only=True)
    tensors = [torch.zeros(2), torch.eye(32).to_sparse(), torch.zeros(1).expand(40_000, 40_000)]

    def case():
        if rng.random() < 0.7:
            path.write_bytes(_mutate_torch(good, rng))
        else:
            changed = {**state, "J": dict(state["J"])}
            holder = changed if rng.random() < 0.7 else changed["J"]
            value = rng.choice([*HOSTILE, *tensors])
            holder[rng.choice([*holder, *holder, 7, "0", "٣"])] = copy.deepcopy(value)
            torch.save(changed, path)
        _describe(open_lens(path))

    return case


def tuned_directory(place: Path, rng: random.Random):
    """A published tuned lens: its configuration, or its parameters."""
    from logitlens.lenses import open_lens
    from tests.lenses import test_published, tiny

    folder = test_published.tuned_directory(place / "lens", tiny.gpt2())
    config, params = folder / "config.json", folder / "params.pt"
    good, weights = json.loads(config.read_text()), params.read_bytes()

    def case():
        text, data = json.dumps(good).encode(), weights
        if rng.random() < 0.5:
            text = _json_text(mutate_json(good, rng), rng)
        else:
            data = _mutate_torch(weights, rng)
        config.write_bytes(mutate_bytes(text, rng) if rng.random() < 0.1 else text)
        params.write_bytes(data)
        _describe(open_lens(folder))

    return case


def _mutate_torch(data: bytes, rng: random.Random) -> bytes:
    """A torch file with its bytes changed; or its pickle, in an archive that is right again."""
    import io
    import zipfile

    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = [name for name in members if name.endswith("data.pkl")]
    name = pickled if rng.random() < 0.8 else rng.choice([n for n in members if members[n]])
    members[name] = mutate_bytes(members[name], rng)
    out = io.BytesIO()
    how = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, "w", how) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def _describe(found) -> None:
    """What a reading and `lens show` say of a lens."""
    json.dumps(found.describe(), allow_nan=False)
    repr(found), found.header.to_json()


FORMATS = {
    f.__name__: f
    for f in (reading_json, reading_parquet, page_html, corpus, facts, checkpoint, lens, jacobian_pt,
              tuned_directory)
}  # fmt: skip


def run(name: str, count: int, seed: int) -> dict:
    """How `count` mutated inputs of a format ended."""
    from logitlens import LogitLensError

    rng = random.Random(seed)
    ends: Counter[str] = Counter()
    unclean: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        case = FORMATS[name](Path(folder), rng)
        try:
            case()  # imports and first allocations come before the limit
        except LogitLensError:
            pass
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))
        for number in range(count):
            try:
                case()
                ends["read"] += 1
            except LogitLensError as error:
                text = str(error)
                clean = "\n" not in text and len(text) < 1000
                ends["refused" if clean else "unclean"] += 1
                if not clean:
                    unclean.append(f"{number}: long or several lines: {text[:300]!r}")
            except MemoryError:
                ends["memory"] += 1
            except BaseException as error:
                ends["unclean"] += 1
                unclean.append(f"{number}: {type(error).__name__}: {error}"[:300])
    return {"format": name, "tried": count, "seed": seed, **ends, "first": unclean[:5]}


def main(seed: str, *asked: str) -> int:
    from tests.models import tiny_gpt2  # with what takes seconds to load

    tiny_gpt2()
    failed = 0
    for name, count in (words.split("=") for words in asked):
        child = os.fork()
        if child == 0:
            try:
                print(json.dumps(run(name, int(count), int(seed))), flush=True)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        failed |= os.waitpid(child, 0)[1]
    return int(failed != 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
