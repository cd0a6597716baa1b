"""Atomic writes: the old file or the new one, its mode and its links kept, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager

import pytest

from logitlens import files
from logitlens.errors import FormatError
from logitlens.files import check_writable, replacing, write_bytes, write_text


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    old = os.umask(0o027)
    yield
    os.umask(old)


def test_a_file_that_is_not_to_be_replaced_stays(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    for refusal in (None, PermissionError("no links here")):  # as on some file systems

        def link(*args, refusal=refusal):
            raise refusal

        if refusal is not None:
            monkeypatch.setattr(os, "link", link)
        path.unlink(missing_ok=True)
        for text in ("one", "two"):
            with contextlib.suppress(FileExistsError), replacing(path, over=False) as temporary:
                temporary.write_text(text)
            assert path.read_text() == "one"
        with pytest.raises(FileExistsError), replacing(path, over=False) as temporary:
            temporary.write_text("three")
        assert os.listdir(tmp_path) == ["a.json"]


def test_a_new_file_follows_the_umask_and_an_old_one_keeps_its_mode(tmp_path, umask):
    path = tmp_path / "a.json"
    write_text(path, "one")
    assert mode(path) == 0o640
    for kept in (0o600, 0o666, 0o444):
        path.chmod(kept)
        write_text(path, "two")
        assert (mode(path), path.read_text()) == (kept, "two")


def test_what_is_being_written_is_no_more_readable_than_what_it_replaces(tmp_path):
    path = tmp_path / "a.json"
    path.touch(0o600)
    with replacing(path) as temporary:
        assert mode(temporary) == 0o600


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "real.json", tmp_path / "link.json"
    link.symlink_to("far/real.json")
    for text in ("made through the link", "replaced through the link"):
        write_text(link, text)
        assert link.is_symlink()
        assert target.read_text() == text
        assert os.listdir(tmp_path / "far") == ["real.json"]


def half_written(path, failure):
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise failure


@pytest.mark.parametrize("failure", [ValueError("odd"), FormatError("odd"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(type(failure)):
        half_written(path, failure)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("write", [check_writable, lambda path: write_text(path, "x")])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("folder", "it is a directory"),
        ("none/x.json", "there is no folder"),
        ("pipe", "it is not a regular file"),
        ("to-pipe", "it is not a regular file"),
        ("file/x.json", "Not a directory"),
        ("loop", "symbolic link"),
        ("x" * 300, "File name too long"),
    ],
)
def test_what_cannot_be_written_is_one_line_and_is_left_alone(tmp_path, write, name, words):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to-pipe").symlink_to("pipe")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(OSError) as caught:
        write(tmp_path / name)
    assert str(caught.value).startswith(f"cannot write {tmp_path / name}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_the_longest_names_are_written(tmp_path):
    for name in (
        "x" * 250 + ".json",
        "\N{GRINNING FACE}" * 60 + ".json",
        ".json",
        "x." + "y" * 250,
    ):
        write_text(tmp_path / name, "whole")
        assert (tmp_path / name).read_text() == "whole"


KILLED = """
import os, signal, sys
from logitlens.files import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print(temporary, flush=True)
    if sys.argv[2] == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    input()
"""


def writer(path, what):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, path, what],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return process, process.stdout.readline().strip()


def test_what_a_killed_write_left_is_removed_by_the_next_and_a_living_one_is_not(tmp_path):
    path, other = tmp_path / "a.json", tmp_path / ".a.json.notes.tmp.json"
    other.write_text("mine")
    with writer(path, "dies")[0] as dead:
        assert dead.wait(20) == -signal.SIGKILL
    alive, held = writer(path, "lives")
    with alive:
        assert sorted(os.listdir(tmp_path)) == sorted([other.name, os.path.basename(held)])
        write_text(path, "new")
        assert sorted(os.listdir(tmp_path)) == sorted(
            [other.name, os.path.basename(held), path.name]
        )
        alive.communicate("\n", timeout=20)
    assert (alive.returncode, path.read_text()) == (0, "half")
    assert sorted(os.listdir(tmp_path)) == sorted([other.name, path.name])


def test_a_file_taken_for_a_leftover_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    lock, taken = files._lock, []

    def late(file, wait):
        if wait and not taken:
            taken.extend(os.listdir(tmp_path))
            os.unlink(tmp_path / taken[0])  # what the sweep of another process does
        return lock(file, wait)

    monkeypatch.setattr(files, "_lock", late)
    write_text(tmp_path / "a.json", "whole")
    assert os.listdir(tmp_path) == ["a.json"]
    assert taken[0].startswith(".a.json.")


def test_without_locks_a_file_is_written_too(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    write_text(tmp_path / "a.json", "whole")
    assert os.listdir(tmp_path) == ["a.json"]


@contextmanager
def full_disk():
    """Inside, no file grows above 2,000 bytes: what a writer meets on a full disk, with another word.

    Left before pytest writes its own line, whose file may be longer. Python 3.11 would keep the first
    2,000 bytes of the bytecode of a module imported in here, and never be able to import it again.
    """
    keeps_none, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
        sys.dont_write_bytecode = keeps_none


def _torch(path):
    torch = pytest.importorskip("torch")
    with replacing(path) as temporary:
        torch.save({"x": torch.ones(5000)}, temporary)


def _safetensors(path):
    numpy = pytest.importorskip("safetensors.numpy")
    np = pytest.importorskip("numpy")
    with replacing(path) as temporary:
        numpy.save_file({"x": np.ones(5000)}, temporary)


def _reading(path):
    from tests.view.conftest import EIFFEL, make

    make(EIFFEL * 4).save(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.bin", lambda path: write_bytes(path, bytes(5000))),
        ("a.pt", _torch),
        ("a.safetensors", _safetensors),
        *(
            (f"a.{kind}", _reading)
            for kind in ("html", "json", "parquet", "pdf", "png", "svg", "txt")
        ),
    ],
)
def test_a_full_disk_is_one_line_that_names_the_file(tmp_path, name, write):
    path = tmp_path / name
    path.write_text("old")
    with pytest.raises(OSError) as caught, full_disk():
        write(path)
    assert str(caught.value) == f"cannot write {path}: File too large"
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [name]


def test_an_error_about_another_file_keeps_its_own_words(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "a") as temporary:
        temporary.write_bytes((tmp_path / "none").read_bytes())
    assert caught.value.filename == str(tmp_path / "none")


@pytest.mark.parametrize("where", ["_lock", "FileIO"])
def test_an_interrupt_while_a_file_is_made_leaves_none(tmp_path, monkeypatch, where):
    def interrupted(*given, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write_text(tmp_path / "a.txt", "new")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_while_a_file_is_closed_leaves_what_was_written_alone(tmp_path, monkeypatch):
    class Interrupted(files.FileIO):
        def close(self):
            super().close()
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "FileIO", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.check_writable(tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []
