"""Pushing, by the hub's own client, to a hub on the loopback interface."""

import shutil
import socket

import numpy as np
import pytest

from pretrain.checkpoint.digests import write_digests
from pretrain.checkpoint.hub import Hub
from pretrain.errors import CheckpointError
from tests.support.hub_server import TOKEN, HubServer

LARGE = ("PUT /lfs/", "POST /api/models/.*/commit/")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # as in a run that has loaded lm-eval's tasks
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with HubServer().running() as running:
        yield running


def _release(path, seed, *, shards=1):
    """A folder with the names and sizes of a release; nobody loads it here."""
    path.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    names = ["model.safetensors"] if shards == 1 else [f"model-{n}-of-{shards}.safetensors" for n in range(shards)]
    for name in names:
        (path / name).write_bytes(rng.bytes(20_000))
    (path / "config.json").write_text('{"model_type": "llama"}\n')
    (path / "tokenizer.json").write_text("x" * 9000)
    write_digests(path)
    (path / "README.md").write_text(f"---\nlibrary_name: transformers\n---\nStep {seed}\n")
    return path


def _contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _push(server, folder, revision="main", repository="me/model", **options):
    return Hub(server.address).push(folder, repository, revision=revision, message="Step 1", **options)


def test_a_push_is_one_commit_with_every_file_and_the_next_one_none(server, tmp_path):
    folder = _release(tmp_path / "r", 1)
    assert _push(server, folder).num_files == 5
    repository = server.repositories["me/model"]
    assert repository.files("main") == _contents(folder)
    assert [commit.title for commit in repository.branches["main"]] == ["initial commit", "Step 1"]
    assert repository.private, "nobody asked to publish it"
    before = len(server.requests)
    assert _push(server, folder).num_files == 0
    assert server.requests[before:] == ["GET /api/models/me/model/tree/main"]
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\nScores\n")
    before = len(server.requests)
    assert _push(server, folder).num_files == 1
    assert not [request for request in server.requests[before:] if request.startswith("PUT")]
    assert repository.files("main") == _contents(folder)


def test_revisions_and_main_have_each_their_own_files(server, tmp_path):
    first, last = _release(tmp_path / "a", 1), _release(tmp_path / "b", 2)
    for folder, revision in ((last, "main"), (first, "ckpt_000"), (last, "ckpt_001")):
        _push(server, folder, revision)
    repository = server.repositories["me/model"]
    assert repository.files("ckpt_000") == _contents(first)
    assert repository.files("ckpt_001") == repository.files("main") == _contents(last)
    assert len(server.sent("^PUT")) == 3, "two weights and a tokenizer, however many revisions have them"


def test_a_repository_without_an_owner_is_the_users_and_can_be_public(server, tmp_path):
    assert _push(server, _release(tmp_path / "r", 1), repository="mine", public=True).repository == "me/mine"
    assert not server.repositories["me/mine"].private


def test_files_of_ours_that_a_release_does_not_have_go_and_others_stay(server, tmp_path):
    _push(server, _release(tmp_path / "a", 1, shards=2))
    branches = server.repositories["me/model"].branches
    branches["main"][-1].files["notes.md"] = b"by somebody"
    folder = _release(tmp_path / "b", 2)
    _push(server, folder)
    assert server.repositories["me/model"].files("main") == {**_contents(folder), "notes.md": b"by somebody"}


@pytest.mark.parametrize("request_that_fails", ["PUT /lfs", "POST /api/models/me/model/commit"])
def test_an_error_in_the_middle_leaves_the_revision_and_a_retry_completes_it(server, tmp_path, request_that_fails):
    first, second = _release(tmp_path / "a", 1), _release(tmp_path / "b", 2)
    _push(server, first, "ckpt_000")
    # 403 is what storage answers when a signed address has run out; the client does not wait and try again by itself.
    server.fail = lambda request: 403 if request.startswith(request_that_fails) else None
    for revision in ("ckpt_000", "ckpt_001"):
        with pytest.raises(CheckpointError, match=r"me/model .*checkpoint release RUN"):
            _push(server, second, revision)
    repository = server.repositories["me/model"]
    assert repository.files("ckpt_000") == _contents(first)
    assert repository.files("ckpt_001") == {}, "a revision without weights, not one with another step's"
    server.fail = lambda request: None
    for revision in ("ckpt_000", "ckpt_001"):
        _push(server, second, revision)
        assert repository.files(revision) == _contents(second)


def test_a_damaged_file_is_refused_before_anything_is_sent(server, tmp_path):
    folder = _release(tmp_path / "r", 1)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[100] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not what was written"):
        _push(server, folder)
    assert not any(server.sent(pattern) for pattern in LARGE)
    shutil.copy(folder / "config.json", folder / "added.json")
    with pytest.raises(CheckpointError, match=r"added\.json is not what was written"):
        _push(server, folder)
    (folder / "added.json").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not what was written"):
        _push(server, folder)
    assert not any(server.sent(pattern) for pattern in LARGE)


@pytest.mark.parametrize(
    ("token", "writable", "remedy"),
    [("hf_other", True, "hf auth login"), ("", True, "hf auth login"), (TOKEN, False, "write access")],
)
def test_missing_rights_are_explained(server, tmp_path, monkeypatch, token, writable, remedy):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    server.writable = writable
    with pytest.raises(CheckpointError, match=remedy):
        _push(server, _release(tmp_path / "r", 1))
    assert server.repositories == {}


def test_a_hub_that_cannot_be_reached_is_explained(tmp_path, monkeypatch):
    with socket.socket() as held:  # bound, and not listening
        held.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{held.getsockname()[1]}")
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between its tries
        with pytest.raises(CheckpointError, match=r"127\.0\.0\.1.*check the network, HF_ENDPOINT"):
            Hub().push(_release(tmp_path / "r", 1), "me/model", revision="main", message="Step 1")


def test_a_user_who_asked_for_no_network_gets_none(server, tmp_path, monkeypatch):
    monkeypatch.setattr("pretrain.checkpoint.hub._OFFLINE_ASKED", True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE"):
        _push(server, _release(tmp_path / "r", 1))
    assert server.requests == []


def test_a_folder_that_is_no_release_is_refused(server, tmp_path):
    (tmp_path / "r").mkdir()
    with pytest.raises(CheckpointError, match=r"is not a release of this program: it has no SHA256SUMS"):
        _push(server, tmp_path / "r")
    assert server.requests == []
