"""Lens files that are wrong: each is one line, none is read as another lens than it is."""

from __future__ import annotations

import json
import math
import struct

import pytest
import torch

from logitlens.errors import FormatError, LensMismatch, LensNotAvailable
from logitlens.lenses import JacobianLens, TunedLens, merge, open_lens, save
from tests.lenses import tiny
from tests.lenses.test_published import jacobian_file, tuned_directory
from tests.lenses.test_store import header, tuned, with_header

D = tiny.WIDTH


def refusal(make, *arguments, kind=(FormatError, LensMismatch)) -> str:
    with pytest.raises(kind) as caught:
        make(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


# -- maps -----------------------------------------------------------------------------------------


def maps(**parts):
    """A tuned lens of one layer with the tensors given."""
    head = header(tiny.gpt2(), depths=(0,))
    return TunedLens({f"0.{name}": tensor for name, tensor in parts.items()}, head)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_maps_that_are_not_finite(bad, dtype):
    weight = torch.randn(D, D, dtype=dtype)
    weight[5, 7] = bad
    assert "0.weight holds nan or inf" in refusal(lambda: maps(weight=weight))
    with pytest.raises(FormatError, match="1.jacobian holds nan or inf"):
        JacobianLens({"1.jacobian": weight}, header(tiny.gpt2(), "jacobian", depths=(1,)))


def test_half_a_map_is_not_a_logit_lens():
    up, down, bias = torch.randn(D, 4), torch.randn(4, D), torch.ones(D)
    assert "0.down is missing beside 0.up" in refusal(lambda: maps(up=up))
    assert "0.up is missing beside 0.bias" in refusal(lambda: maps(bias=bias, down=down))
    assert "0.weight is missing beside 0.bias" in refusal(lambda: maps(bias=bias))


@pytest.mark.parametrize(
    ("up", "down"),
    [((D, 4), (3, D)), ((D, 3), (4, D)), ((4,), (4, D)), ((D, 0), (0, D)), ((D, 4), ())],
)
def test_ranks_that_differ(up, down):
    text = refusal(lambda: maps(up=torch.zeros(up), down=torch.zeros(down)))
    assert "was expected of a lens of width 32" in text


@pytest.mark.parametrize(
    "name", ["00", "01", "٣", "²", "-1", "+1", "1e0", " 1", "1 ", "1_0", "", "9" * 6, "9" * 5000]
)
def test_layers_under_other_names_than_their_number(name, tmp_path):
    model = tiny.gpt2()
    lens = tuned(model)
    tensors = {**lens.tensors, f"{name}.weight": torch.zeros(D, D)}
    refusal(lambda: TunedLens(tensors, lens.header))
    folder = tuned_directory(tmp_path / "lens", model)
    state = torch.load(folder / "params.pt", weights_only=True)
    torch.save({**state, f"{name}.weight": state["0.weight"]}, folder / "params.pt")
    refusal(open_lens, folder)
    path = jacobian_file(tmp_path / "lens.pt", model)
    torch.save({"J": {0: torch.eye(D), name: torch.eye(D)}, "d_model": D}, path)
    refusal(open_lens, path)


@pytest.mark.parametrize("key", [True, 1.0, None, (1,), -1, 10**9, 10**30, "1"])
def test_keys_of_a_jacobian_file_that_are_no_layers_or_are_there_twice(key, tmp_path):
    path = tmp_path / "lens.pt"
    torch.save({"J": {1: torch.eye(D), "0": torch.eye(D), key: torch.eye(D)}, "d_model": D}, path)
    if key is True or key == 1.0:  # Python's dict knows them as 1
        torch.save({"J": {key: torch.eye(D)}, "d_model": D}, path)
    refusal(open_lens, path)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(D).to_sparse(),
        torch.empty(D, D, device="meta"),
        torch.zeros(D, D, dtype=torch.complex64),
        torch.zeros(D, D, dtype=torch.float8_e4m3fn),
        torch.zeros(D, D, dtype=torch.bool),
    ],
    ids=["sparse", "meta", "complex", "float8", "bool"],
)
def test_maps_of_another_kind_of_tensor(tensor):
    assert "expected a dense tensor" in refusal(lambda: maps(weight=tensor))


# -- our own files --------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    return save(tuned(tiny.gpt2()), tmp_path / "tuned.safetensors")


OTHER = [None, True, -1, 2.5, 1e400, "text", "٣", [], {}, [[]], {"a": 1}, "9" * 5000, 10**30]


@pytest.mark.parametrize("name", sorted(json.loads(header(tiny.gpt2()).to_json())))
def test_entries_of_other_types(own, name):
    """Every entry of the header, with every type of JSON: a lens that is whole, or one line."""
    for value in OTHER:
        with_header(own, **{name: value})
        try:
            lens = open_lens(own)
        except (FormatError, LensMismatch):
            refusal(open_lens, own)
            continue
        json.dumps(lens.describe(), allow_nan=False)
        repr(lens)
        lens.header.to_json()


@pytest.mark.parametrize("levels", [50, 900, 100_000])
def test_headers_nested_beyond_reason(own, levels):
    for name in ("corpus", "settings", "extra", "depths"):
        with_header(own, **{name: "MARK"})
        content = own.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        nested = b'{\\"a\\":' * levels + b"1" + b"}" * levels
        new = content[8 : 8 + length].rstrip().replace(b'\\"MARK\\"', nested)
        own.write_bytes(struct.pack("<Q", len(new)) + new + content[8 + length :])
        refusal(open_lens, own)
        save(tuned(tiny.gpt2()), own)


def test_a_header_longer_than_any_is_refused_unread(own):
    own.write_bytes(struct.pack("<Q", 90_000_000) + b"{" * 90_000_000)
    assert "90000000 bytes" in refusal(open_lens, own)


def test_entries_of_a_newer_version(own):
    refusal(open_lens, with_header(own, invented=1))


def test_fingerprints_of_other_kinds(own):
    for value in (
        {"vocab": 97, "width": 32, "answers": []},
        {"vocab": 97, "width": 32, "answers": [math.nan] * 256},
        {"vocab": 97, "width": 32, "answers": [1.0] * 100_000},
        {"vocab": 97, "width": 32, "answers": [1.0] * 255},
        {"vocab": "97", "width": 32, "answers": [1.0] * 256},
        {"vocab": 97, "width": 32, "answers": [1.0] * 256, "covers": "some"},
    ):
        refusal(open_lens, with_header(own, unembedding=value))


# -- published files ------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ["d_model", "num_hidden_layers"])
@pytest.mark.parametrize("value", [3 * 10**8, 10**30, "3", 3.0, None, [], True, -1, 0])
def test_a_tuned_config_of_other_sizes(tmp_path, entry, value):
    folder = tuned_directory(tmp_path / "lens", tiny.gpt2(), **{entry: value})
    refusal(open_lens, folder)


@pytest.mark.parametrize(
    "entry", ["base_model_name_or_path", "base_model_revision", "unembed_hash", "other"]
)
@pytest.mark.parametrize("value", [3, [], {"a": 1}, 1e400])
def test_a_tuned_config_of_other_types(tmp_path, entry, value):
    folder = tuned_directory(tmp_path / "lens", tiny.gpt2(), **{entry: value})
    if entry != "other":
        refusal(open_lens, folder)


@pytest.mark.parametrize("text", ["[]", "{", "1", '{"a":' * 100_000, " " * (2 << 20)])
def test_a_tuned_config_that_is_none(tmp_path, text):
    folder = tuned_directory(tmp_path / "lens", tiny.gpt2())
    (folder / "config.json").write_text(text)
    refusal(open_lens, folder)
    (folder / "config.json").unlink()
    refusal(open_lens, folder, kind=LensNotAvailable)


@pytest.mark.parametrize(
    ("entry", "values"),
    [
        ("n_prompts", ["12", 1.5, -1, [12], torch.ones(2), 10**30]),
        ("d_model", ["32", 32.0, None, -1, 10**30, [], True]),
        ("source_layers", [3, "01", [0, "x"], [0, None], {"a": 1}, torch.ones(2), [[0], [1]]]),
        ("J", [[], {}, torch.ones(2), {0: [1.0]}, {0: "text"}, {0: torch.ones(D)}]),
    ],
)
def test_a_jacobian_file_with_entries_of_other_types(tmp_path, entry, values):
    for value in values:
        refusal(open_lens, jacobian_file(tmp_path / "lens.pt", tiny.gpt2(), **{entry: value}))


# -- shards ---------------------------------------------------------------------------------------


def test_a_shard_given_twice_is_refused(tmp_path):
    model = tiny.gpt2()
    a, b = (jacobian_file(tmp_path / f"{i}.pt", model, seed=i) for i in (1, 2))
    copy = tmp_path / "copy.pt"
    copy.write_bytes(a.read_bytes())
    for twice in ([a, a], [a, b, copy]):
        text = refusal(lambda paths=twice: merge([open_lens(p) for p in paths]))
        assert "its prompts would count twice" in text
    assert merge([open_lens(a), open_lens(b)]).header.weight == 24
