"""`.pt` files: what torch.save writes is read, and no byte of a file makes us run or allocate more."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict

import pytest
import torch

from logitlens.errors import FormatError
from logitlens.lenses import torchfile


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_torch_saves_is_what_is_read(tmp_path, dtype):
    big = torch.randn(6, 5).to(dtype)
    state = {
        "J": {0: big, 3: big[1:3], 4: big.T, 5: torch.zeros(0, 5, dtype=dtype)},
        "parameter": torch.nn.Parameter(big.clone()),
        "layers": [0, 3, -4, 70_000],
        "facts": (None, True, 1.5, "text", 2**40),
        "state": torch.nn.Linear(2, 3).state_dict(),
    }
    torch.save(state, tmp_path / "a.pt")
    found = torchfile.load(tmp_path / "a.pt")
    truth = torch.load(tmp_path / "a.pt", weights_only=True)
    for layer, tensor in truth["J"].items():
        torch.testing.assert_close(found["J"][layer], tensor, rtol=0, atol=0)
    torch.testing.assert_close(found["parameter"], big, rtol=0, atol=0)
    assert (found["layers"], found["facts"]) == (state["layers"], state["facts"])
    assert isinstance(found["state"], OrderedDict)
    torch.testing.assert_close(found["state"]["bias"], truth["state"]["bias"], rtol=0, atol=0)


def line(path) -> str:
    """What a file is refused with, and that no more was allocated for it than it is long."""
    tracemalloc.start()
    with pytest.raises(FormatError) as caught:
        torchfile.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000_000
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


def rewritten(path, edit, **options):
    """A torch file with its members edited: name → bytes."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    edit(members)
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "lens.pt"
    torch.save({"J": {0: torch.randn(8, 8)}, "d_model": 8}, path)
    return path


def test_one_number_expanded_to_a_matrix_is_refused(saved):
    torch.save({"J": {0: torch.zeros(1).expand(40_000, 40_000)}, "d_model": 40_000}, saved)
    assert "larger than its storage" in line(saved)


def test_overlapping_rows_are_refused(saved):
    torch.save({"J": {0: torch.zeros(100).as_strided((90, 11), (1, 1))}}, saved)
    assert "larger than its storage" in line(saved)


def test_compressed_members_are_refused(saved):
    """Two thousand numbers may unpack to four billion."""
    torch.save({"J": {0: torch.zeros(2000, 2000)}}, saved)
    rewritten(saved, lambda members: None, compression=zipfile.ZIP_DEFLATED)
    assert saved.stat().st_size < 100_000
    assert "is compressed" in line(saved)


def test_a_storage_shorter_than_it_says_is_refused(saved):
    """torch itself would read past its end."""
    with zipfile.ZipFile(saved) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("/data/0")]
    rewritten(saved, lambda members: members.update({name: members[name][:-4]}))
    assert "not as long as it should be" in line(saved)


def test_a_flipped_bit_is_noticed(saved):
    content = bytearray(saved.read_bytes())
    where = content.index(torchfile.load(saved)["J"][0].numpy().tobytes())
    content[where + 17] ^= 4
    saved.write_bytes(content)
    assert "CRC" in line(saved)


def test_other_tensors_than_dense_ones_are_refused(saved):
    for tensor in (torch.eye(4).to_sparse(), torch.empty(10**6, 10**6, device="meta")):
        torch.save({"J": {0: tensor}, "d_model": 4}, saved)
        assert "more than tensors" in line(saved)


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "value", [Call(print, "ran"), Call(bytearray, 10**10), Call(range, 10**10), Call(eval, "1")]
)
def test_nothing_a_file_says_is_run(saved, value, capsys):
    torch.save({"J": value}, saved)
    assert "can run code" in line(saved)
    assert capsys.readouterr().out == ""


HUGE = struct.pack("<Q", 10**10)
PICKLES = {
    "memo of billions": b"\x80\x02}" + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f.",
    "bytearray of ten gigabytes": b"\x80\x05" + pickle.BYTEARRAY8 + HUGE + b".",
    "text of two gigabytes": b"\x80\x02" + pickle.BINUNICODE + b"\xff\xff\xff\x7f.",
    "number of gigabytes": b"\x80\x02" + pickle.LONG4 + b"\xff\xff\xff\x7f.",
    "framed": pickle.dumps({}, protocol=4),
    "a list called": b"\x80\x02](K\x01tR.",
    "nothing": b"",
    "no dict": pickle.dumps([1], protocol=2),
    "stack too short": b"\x80\x02t.",
    "deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "attributes of an int": b"\x80\x02K\x01}b.",
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_made_to_harm(saved, name):
    def edit(members):
        members.update({n: PICKLES[name] for n in members if n.endswith("data.pkl")})

    rewritten(saved, edit)
    if name == "memo of billions":
        assert torchfile.load(saved) == {}  # a dict of one name is what it is
    else:
        line(saved)


def test_a_long_pickle_is_refused_unread(saved):
    def edit(members):
        members.update({n: b"]" * (2 << 20) for n in members if n.endswith("data.pkl")})

    assert "has 2097152 bytes" in line(rewritten(saved, edit))


def test_archives_of_another_kind(saved):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("hello.txt", "hello")
    saved.write_bytes(buffer.getvalue())
    assert "data.pkl" in line(saved)
    torch.save({"a": torch.zeros(1)}, saved, _use_new_zipfile_serialization=False)
    line(saved)
