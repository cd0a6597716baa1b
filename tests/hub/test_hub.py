"""The hub as networks make it: away, hanging, resetting, a portal; and as it should be."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from logitlens import hub
from logitlens.errors import ModelNotAvailable
from logitlens.lenses import online
from tests.hub.server import COMMIT, serving, use


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    for name, content in {
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "model.safetensors": b"weights" * 9,
        "pytorch_model.bin": b"others",
        "README.md": b"words",
    }.items():
        (path / name).write_bytes(content)
    return path


def took(function, *args):
    """The seconds a call took, and the line of its error."""
    began = time.perf_counter()
    with pytest.raises(ModelNotAvailable) as caught:
        function(*args)
    line = str(caught.value)
    assert "\n" not in line
    return time.perf_counter() - began, line


def fetch_and_list(name="some/model"):
    """Everything that asks the network: a model, both kinds of published lens, and ours."""
    yield hub.fetch, name
    yield online.find, "tuned", name
    yield online.find, "jacobian", name
    yield online.pull, name


def test_a_model_is_downloaded_once_and_then_found(tmp_path, folder, monkeypatch):
    with serving(folder) as server:
        use(monkeypatch, server.address, tmp_path / "cache")
        found = hub.fetch("some/model")
        assert hub.revision_of(found) == COMMIT
        assert {p.name for p in found.iterdir()} == {
            "config.json",
            "tokenizer.json",
            "model.safetensors",
        }
        assert (found / "model.safetensors").read_bytes() == b"weights" * 9
        server.asked.clear()
        assert hub.fetch("some/model") == found
        assert hub.fetch("some/model", COMMIT) == found
        assert server.asked == []


def test_a_lens_is_downloaded_and_a_missing_one_is_none(tmp_path, folder, monkeypatch):
    (folder / "tuned.safetensors").write_bytes(b"lens")
    with serving(folder) as server:
        use(monkeypatch, server.address, tmp_path / "cache")
        assert online.pull("some/lenses").read_bytes() == b"lens"
        assert online.pull("some/lenses", "jacobian") is None
        assert online.find("tuned", "some/model") is None
        assert online.find("jacobian", "some/model") is None


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_set_after_import_is_heeded_by_all(tmp_path, monkeypatch, variable):
    with serving() as server:
        use(monkeypatch, server.address, tmp_path / "cache")
        monkeypatch.setenv(variable, "1")
        for call in fetch_and_list():
            assert "HF_HUB_OFFLINE is set" in took(*call)[1]
        assert server.asked == []


def test_a_network_that_was_away_is_asked_again(tmp_path, folder, monkeypatch):
    with serving(folder) as server:
        use(monkeypatch, server.address, tmp_path / "cache")
        server.does = lambda path: "reset"
        assert "could not be read" in took(hub.fetch, "some/model")[1]
        server.does = lambda path: None
        assert hub.fetch("some/model").is_dir()


def stage(path: str) -> str:
    return "probe" if path == "/" else "listing" if path.startswith("/api/") else "file"


@pytest.mark.parametrize("what", ["reset", "hang", "busy", "portal"])
@pytest.mark.parametrize("bad", [("probe", "listing", "file"), ("listing", "file"), ("file",)])
def test_a_bad_network_costs_seconds_and_says_one_line(
    tmp_path, folder, monkeypatch, capfd, what, bad
):
    """A hub may answer the probe and then not the listing, or both and then no file."""
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.3)
    monkeypatch.setattr(hub, "SILENCE", 0.4)
    with serving(folder) as server:
        use(monkeypatch, server.address, tmp_path / "cache")
        server.does = lambda path: what if stage(path) in bad else None
        for call in fetch_and_list():
            if call[:2] == (online.find, "jacobian") and bad == ("file",):
                continue  # it asks for no file that is not listed
            seconds, line = took(*call)
            assert seconds < 3, call
            assert server.address in line
            assert len(line) < 600
    assert "Retrying" not in "".join(capfd.readouterr())


def test_what_is_given_up_stays_quiet_afterwards(tmp_path, folder, monkeypatch, capfd):
    """The client library goes on trying in the thread that was left behind."""
    monkeypatch.setattr(hub, "SILENCE", 0.3)
    with serving(folder) as server:
        use(monkeypatch, server.address, tmp_path / "cache")
        server.does = lambda path: "busy" if "/resolve/" in path else None
        took(hub.fetch, "some/model")
        asked = len(server.asked)
        time.sleep(2.5)
        assert len(server.asked) > asked  # it does go on
    assert "".join(capfd.readouterr()) == ""


def test_a_password_in_the_address_is_never_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.3)
    monkeypatch.setattr(hub, "SILENCE", 0.3)
    for secret in ("ann:hunter2", "ann:hun@ter2", "ann:hun/ter2", "ann:hunter2%40"):
        use(monkeypatch, f"{secret}@127.0.0.1:9", tmp_path / "cache")
        for call in fetch_and_list():
            line = took(*call)[1]
            assert "ter2" not in line
            assert "ann" not in line
    with serving() as server:
        use(monkeypatch, f"ann:hunter2@{server.address}", tmp_path / "cache")
        server.does = lambda path: "portal" if path.startswith("/api") else None
        assert "hunter2" not in took(hub.fetch, "some/model")[1]


@pytest.mark.parametrize("variable", ["http_proxy", "ALL_PROXY"])
def test_a_proxy_serves_lenses_as_it_serves_models(tmp_path, folder, monkeypatch, variable):
    """The address itself does not exist: only through the proxy anything is answered."""
    (folder / "tuned.safetensors").write_bytes(b"lens")
    with serving(folder) as proxy:
        monkeypatch.setenv(variable, f"http://{proxy.address}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        use(monkeypatch, "hub.invalid", tmp_path / "cache")
        assert hub.fetch("some/model").is_dir()
        assert online.pull("some/lenses") is not None
        assert proxy.asked


@pytest.mark.parametrize(
    "name", ["a--b", "x.git", "x.", "a" * 200, "gptü/x", "a/b/c", "", "x y", "../x", "ⅷ"]
)
def test_names_that_cannot_be(name):
    assert not hub.is_name(name)


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2", "a/b.c_d-e"])
def test_names_that_can_be(name):
    assert hub.is_name(name)


def test_a_damaged_reference_in_the_cache_is_no_model(tmp_path, monkeypatch):
    use(monkeypatch, "127.0.0.1:9", tmp_path)
    refs = tmp_path / "models--some--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_bytes(b"\xff\xfe\x00")
    assert "not in the cache" in took(hub.fetch, "some/model")[1]


def test_a_download_by_another_process_is_waited_for(tmp_path):
    one = hub.Hub()
    assert not one.receiving()
    one.blobs = tmp_path
    (tmp_path / "a.incomplete").touch()
    assert not one.receiving()
    (tmp_path / "a.incomplete").write_bytes(b"half")
    assert one.receiving()


def test_the_hub_needs_no_torch():
    code = (
        "import sys, logitlens.hub as h; h.is_name('a'); h.offline(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
