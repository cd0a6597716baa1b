"""The page's data and file: every number of the Reading, and nothing that a token could break."""

from __future__ import annotations

import base64
import copy
import gzip
import hashlib
import json
import random
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from logitlens import statistics
from logitlens.errors import FormatError
from logitlens.reading import Reading
from logitlens.view import page
from logitlens.view.page import align, data
from tests.readings import random_reading
from tests.view import page_fixture
from tests.view import page_synthetic as synthetic

FLOATS = [s.name for s in statistics.stored() if s.is_float]
EXACT = [s.name for s in statistics.stored() if not s.is_float]


@pytest.mark.parametrize("shape", [(1, 1, 1, 0), (5, 7, 4, 2), (3, 300, 2, 0), (2, 2, 255, 1)])
def test_page_data_hold_every_number_of_the_reading(shape):
    reading = synthetic.random(*shape, seed=sum(shape))
    back = page.decode(*page.encode(reading))
    for name in EXACT:
        assert np.array_equal(getattr(back, name), getattr(reading, name)), name
    for name in FLOATS:
        with np.errstate(over="ignore"):
            want = getattr(reading, name).astype(np.float16).astype(np.float32)
        assert np.array_equal(getattr(back, name), want, equal_nan=True), name
    assert (back.pieces, back.layers, back.vocab) == (reading.pieces, reading.layers, reading.vocab)
    assert back.meta == reading.meta


def test_positions_of_a_part_of_the_prompt_come_back():
    base = synthetic.random(2, 4, 2, 0)
    for positions in ([0, 1, 2, 3], [5, 6, 7, 8]):
        reading = base.replace(meta={"positions": positions})
        assert page.decode(*page.encode(reading)).meta["positions"] == positions


def test_half_precision_keeps_a_logprob_within_a_two_thousandth():
    reading = synthetic.random(6, 40, 8, 1, seed=2)
    back = page.decode(*page.encode(reading))
    finite = np.isfinite(reading.top_logprobs)
    error = np.abs(back.top_logprobs - reading.top_logprobs)[finite]
    assert (error <= np.abs(reading.top_logprobs[finite]) / 2048 + 1e-7).all()


def test_large_readings_are_tiled_and_equal_the_whole(monkeypatch):
    reading = synthetic.plausible(L=5, T=600, K=3)
    whole = page.decode(*page.encode(reading))
    monkeypatch.setattr(data, "TILE_ABOVE", 60_000)
    manifest, blocks = page.encode(reading, "x.")
    assert manifest["tiles"] == ["x.0", "x.256", "x.512"]
    monkeypatch.setattr(data, "TILE", 10_000)
    assert page.encode(reading)[0]["tile"] < 600, "a tile is never larger than what needs none"
    assert set(blocks) == {"x.head", *manifest["tiles"]}
    assert page.decode(manifest, blocks).equals(whole)


def test_2000_positions_at_48_layers_are_a_file_of_at_most_4_mb_with_candidates(tmp_path):
    reading = synthetic.plausible(L=48, T=2000, K=5, M=0)
    path = page.save([reading], tmp_path / "page.html")
    assert path.stat().st_size <= 2_400_000
    assert np.array_equal(page.load(path)[0].top_ids, reading.top_ids)
    followed = synthetic.with_candidates(reading)
    assert page.save([followed], path).stat().st_size <= 4_000_000


def test_a_file_survives_a_change_of_line_ends(tmp_path):
    reading = synthetic.random(3, 50, 4, 1)
    path = page.save([reading], tmp_path / "page.html")
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert page.load(path)[0].equals(page.decode(*page.encode(reading)))


def test_pages_of_the_second_version_still_load():
    """A file as it was written then, without its script and style."""
    (old,) = page.load(Path(__file__).with_name("page_version_2.html"))
    reading = synthetic.random(3, 10, 4, 2, C=0, seed=1)
    assert old.equals(page.decode(*page.encode(reading)))
    whole = Path(__file__).parents[1] / "data/version1"
    assert page.load(whole / "reading.html")[0].words == Reading.load(whole / "reading.json").words


def test_text_of_the_second_version_gives_its_bytes_again():
    # 0000001 0100000 1000001 are 00000010 10000010 and five bits to spare
    # a NUL with the seven bits after it, then one that is alone at the end
    for text, known in [("", b""), ("\x01 A", b"\x02\x82"), ("\x81\u0780", b"\0\4")]:
        assert page._version_2_blocks([("a", text)]) == {"a": known}
    with pytest.raises(ValueError, match=r"below U\+0800"):
        page._version_2_blocks([("a", "日本")])


def test_pages_of_the_first_version_are_refused_in_one_line(tmp_path):
    text = page.html([synthetic.random(2, 3, 2, 0)])
    path = tmp_path / "old.html"
    path.write_text(text.replace('"version":3', '"version":1'), "utf-8")
    with pytest.raises(
        FormatError, match="version 2 or 3, found 'logitlens-page' 1; open it in a browser"
    ):
        page.load(path)


def test_ranks_of_ties_are_those_of_the_definition():
    logprobs = np.array([[[-1.0, -2.0, -2.0, -2.0, -3.0]]], np.float32)
    assert data.tied_ranks(logprobs).tolist() == [[[1, 2, 2, 2, 5]]]
    plain = synthetic.plausible(L=2, T=3, K=4)
    assert "top_ranks" not in [name for name, _, _ in page.encode(plain)[0]["fields"]]
    tied = synthetic.random(2, 3, 4, 0)
    assert "top_ranks" in [name for name, _, _ in page.encode(tied)[0]["fields"]]


def test_the_same_reading_gives_the_same_bytes():
    reading = synthetic.random(3, 5, 4, 1)
    assert page.html([reading]) == page.html([reading])


def test_damaged_blocks_are_one_clear_error():
    manifest, blocks = page.encode(synthetic.random(3, 5, 4, 1))
    for name, bad in [
        ("0", blocks["0"][:40]),
        ("0", gzip.compress(b"short")),
        ("0", gzip.compress(gzip.decompress(blocks["0"]) + b"x")),
        ("0", gzip.compress(b"\xff" + gzip.decompress(blocks["0"])[1:])),
        ("head", b"no gzip"),
    ]:
        with pytest.raises(FormatError, match="bytes|damaged|cut short"):
            page.decode(manifest, blocks | {name: bad})
    with pytest.raises(FormatError, match="damaged"):
        page.decode(manifest, {"head": blocks["head"]})


def test_sizes_that_the_bytes_cannot_hold_are_refused_before_anything_is_made_of_them():
    manifest, blocks = page.encode(synthetic.random(3, 5, 4, 1))
    many = {"K": 10**9, "M": 10**12}
    for bad in (
        {"shape": manifest["shape"] | many},
        {"layers": ["0"] * 10**6, "shape": manifest["shape"] | {"K": 10**5}},
        {"tile": 0},
        {"tile": 10**12, "tiles": []},
        {"shape": manifest["shape"] | {"M": -1}},
    ):
        with pytest.raises(FormatError, match="damaged"):
            page.decode(manifest | bad, blocks)
    bomb = data.packed(bytes(200_000_000))
    for name in ("0", "head"):
        tracemalloc.start()
        with pytest.raises(FormatError, match="inflates to more than"):
            page.decode(manifest, blocks | {name: bomb})
        assert tracemalloc.get_traced_memory()[1] < 120e6, "not inflated whole"
        tracemalloc.stop()


def test_whatever_a_page_holds_it_is_read_or_refused_in_one_line():
    judge_mutants(400)


@pytest.mark.slow
def test_whatever_a_page_holds_it_is_read_or_refused_in_one_line_at_length():
    judge_mutants(5000)


def judge_mutants(count):
    """Pages with one value of the manifest or of a head replaced, or bytes of the file changed."""
    values = [None, True, -1, 0, 3.5, 10**9, 10**30, "", "x", "\ud800", [], {}, [[]], ["a", 1]]
    values += [[-1], [10**12], {"a": 1}, float("nan")]
    manifest, blocks = page.manifest([synthetic.random(3, 5, 4, 1)])
    head = json.loads(gzip.decompress(blocks["0.head"]))
    refused = 0
    for seed in range(count):
        rng = random.Random(seed)
        bad, parts = copy.deepcopy(manifest), dict(blocks)
        if seed % 3 == 0:
            replace_one(bad["readings"][0], rng, values)
        elif seed % 3 == 1:
            other = copy.deepcopy(head)
            replace_one(other, rng, values)
            parts["0.head"] = gzip.compress(json.dumps(other).encode())
        texts = "".join(
            f'<script type="text/plain" data-ll="{name}">{base64.b64encode(part).decode()}</script>'
            for name, part in parts.items()
        )
        text = json.dumps(bad).replace("<", "\\u003c")
        text = f'<script type="application/json" data-ll="manifest">{text}</script>{texts}'
        if seed % 3 == 2:
            at = rng.randrange(len(text))
            text = (
                text[:at] + rng.choice(["", "0", "[" * 5000, "9" * 5000, '"', "é"]) + text[at + 1 :]
            )
        message = ""
        try:
            (reading,) = page.readings(text) or [synthetic.random(1, 1, 1, 0)]
            page.html([reading])
        except FormatError as error:
            message = str(error)
        assert len(message.splitlines()) <= 1, message
        refused += bool(message)
    assert refused > count / 4


def replace_one(tree, rng, values):
    """Put one of `values` in the place of one node of nested lists and dictionaries."""
    while True:
        keys = list(tree) if isinstance(tree, dict) else range(len(tree))
        key = rng.choice(list(keys))
        if isinstance(tree[key], (dict, list)) and tree[key] and rng.random() < 0.8:
            tree = tree[key]
        else:
            tree[key] = rng.choice(values)
            return


def test_a_hostile_vocabulary_stays_inside_its_script(tmp_path):
    reading = synthetic.hostile()
    path = page.save(
        [reading], tmp_path / "hostile.html", title="</title><script>alert(1)</script>"
    )
    text = path.read_text("utf-8")
    opened = re.findall(r"<script\b", text)
    _, blocks = page.manifest([reading])
    assert len(opened) == len(re.findall(r"</script>", text)) == len(blocks) + 2
    assert "<!--" not in text
    assert "\u2028" not in text.split("<main")[1].split("<script>")[0]
    assert "\\u003c/script" in text  # the label is there, escaped
    back = page.load(path)[0]
    assert back.vocab == reading.vocab
    assert back.pieces == reading.pieces
    assert back.meta["vocab_bytes"] == reading.meta["vocab_bytes"]


def test_the_file_forbids_every_request_and_names_its_own_script():
    text = page.html([synthetic.random(2, 3, 2, 0)])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'")
    code = re.findall(r"<script>(.*?)</script>", text, re.S)[0]
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy
    assert not re.search(r"""(src|href|url\()\s*=?\s*["']?(https?:)?//""", text)


def test_the_script_is_within_its_budget_and_can_stand_in_html():
    script = page.script()
    assert len(gzip.compress(script.encode(), 9)) <= 60 * 1024
    assert "</script" not in script
    assert "<!--" not in script


def test_several_readings_are_named_by_what_differs():
    one = synthetic.plausible(prompt="The capital of France")
    other = synthetic.plausible(prompt="The capital of Italy", seed=1)
    tuned = synthetic.plausible(prompt="The capital of France", lens="tuned")
    assert page.labels([one]) == ["The capital of France"]
    assert page.labels([one, other]) == ["The capital of France", "The capital of Italy"]
    assert page.labels([one, tuned]) == ["logit lens", "tuned lens"]
    assert page.manifest([one, tuned])[0]["title"] == "The capital of France"
    assert page.labels([one, one]) == ["The capital of France (1)", "The capital of France (2)"]


def test_wrong_use_is_one_line_that_says_what_was_expected(tmp_path):
    with pytest.raises(FormatError, match="at least one reading"):
        page.html([])
    with pytest.raises(FormatError, match=r"a .html file has no option 'colour'"):
        synthetic.random(2, 2, 2, 0).save(tmp_path / "x.html", colour="red")
    (tmp_path / "other.html").write_text("<html></html>")
    with pytest.raises(FormatError, match="not a page of logitlens"):
        page.load(tmp_path / "other.html")
    with pytest.raises(FileNotFoundError):
        page.load(tmp_path / "none.html")


def test_a_colour_is_one_of_the_statistics_or_refused_before_anything_is_written(tmp_path):
    reading = synthetic.random(2, 3, 2, 0)
    for name in statistics.colors():
        path = reading.save(tmp_path / f"{name}.html", color=name)
        assert f'"state":"color={name}"}}' in path.read_text("utf-8")
    with pytest.raises(
        FormatError, match=f"'nonsense': expected one of {', '.join(statistics.colors())}"
    ):
        reading.save(tmp_path / "none.html", color="nonsense")
    assert not (tmp_path / "none.html").exists()


def test_tokens_are_aligned_with_gaps_where_they_differ():
    cols = align.columns(
        [list("abcdef"), list("abXdef"), list("acdeef"), ["a", "b", "q", "c", "d", "e", "f"]]
    )
    texts = [list("abcdef"), list("abXdef"), list("acdeef"), ["a", "b", "q", "c", "d", "e", "f"]]
    for own, text in zip(cols, texts):
        assert [p for p in own if p >= 0] == list(range(len(text)))
        assert len(own) == len(cols[0])
    a, b = cols[0], cols[1]
    assert b[a.index(2)] == 2, "c and X stand opposite each other"
    q = cols[3].index(2)
    assert [own[q] for own in cols] == [-1, -1, -1, 2], "a column that only one has"


def test_layers_are_aligned_by_label_or_by_share_of_the_way():
    labels, rows = align.layers([["embed", "0", "1", "2"], ["0", "2"]])
    assert (labels, rows) == (["embed", "0", "1", "2"], [[0, 1, 2, 3], [-1, 0, -1, 1]])
    labels, rows = align.layers([["embed", "0", "1", "2", "3"], ["embed", "0", "1"]])
    assert labels == ["embed", "0", "1", "2", "3"]
    assert rows[1][0] == 0
    assert rows[1][-1] == 2


def test_what_sublayers_add_is_between_the_layers_it_leads_to():
    labels, rows = align.layers([["embed", "0", "1"], ["0.mlp", "1.mlp", "1"], ["1.attn", "1"]])
    assert labels == ["embed", "0.mlp", "0", "1.attn", "1.mlp", "1"]
    assert rows == [[0, -1, 1, -1, -1, 2], [-1, 0, -1, -1, 1, 2], [-1, -1, -1, 0, -1, 1]]


def test_readings_of_different_tokenizers_are_kept_apart():
    one, same = synthetic.plausible(seed=1), synthetic.plausible(seed=2)
    other = synthetic.random(3, 4, 3, 1)
    assert align.vocabularies([one, other, same]) == [0, 1, 0]


def test_chat_roles_and_specials_are_found_in_the_prompt():
    pieces = ["<|im_start|>", "user", "\n", "Hi", "<|im_end|>", "<|im_start|>", "assistant", "\n"]
    base = synthetic.random(2, len(pieces), 2, 0)
    reading = base.replace(pieces=pieces)
    _, blocks = page.encode(reading)
    head = json.loads(gzip.decompress(blocks["head"]))
    assert head["roles"] == [[0, 5, "user"], [5, 8, "assistant"]]
    assert {int(reading.ids[i]) for i in (0, 4, 5)} <= set(head["special"])


def test_the_readers_fixture_is_what_the_writer_writes_today():
    assert page_fixture.TARGET.read_text("utf-8") == page_fixture.fixture()


def test_the_page_needs_numpy_only():
    code = (
        "import sys, logitlens.view.page, logitlens.view.page.notebook\n"
        "bad = {'torch', 'transformers', 'matplotlib', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_file_may_say_any_number_of_tokens_without_costing_memory():
    reading = random_reading()
    reading.meta.update(positions=list(range(len(reading.ids))), prompt_tokens=10**9)
    tracemalloc.start()
    head, _ = page.manifest([reading])
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert "positions=" in json.dumps(head)
