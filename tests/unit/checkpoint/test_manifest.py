import hashlib
import json
import pickle
import random

import pytest

from pretrain.checkpoint.manifest import MANIFEST_NAME, Manifest
from pretrain.errors import CheckpointError
from tests.unit.checkpoint.ranks import save_random


@pytest.fixture
def folder(tmp_path):
    return save_random(tmp_path, 3)


def _rewrite(folder, change):
    """Edits the body as somebody would who also mends the digest."""
    document = json.loads((folder / MANIFEST_NAME).read_text())
    change(document["body"])
    text = json.dumps(document["body"], sort_keys=True, separators=(",", ":"))
    document["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / MANIFEST_NAME).write_text(json.dumps(document))


def test_a_manifest_survives_the_round_trip(folder):
    manifest = Manifest.read(folder)
    assert Manifest.from_text(manifest.to_text()) == manifest
    assert (manifest.step, manifest.optimizer_step, manifest.meta.run_state["tokens"]) == (3, 3, 3000)


def test_another_formatting_of_the_same_values_is_accepted(folder):
    before = Manifest.read(folder)
    document = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / MANIFEST_NAME).write_text(json.dumps(document, indent=1))
    assert Manifest.read(folder) == before


def test_an_edit_is_noticed(folder):
    text = (folder / MANIFEST_NAME).read_text()
    (folder / MANIFEST_NAME).write_text(text.replace('"tokens":3000', '"tokens":3001'))
    with pytest.raises(CheckpointError, match="damaged or edited"):
        Manifest.read(folder)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"sha256":1,"body":2}',
        pickle.dumps({}),
        b"1" * 10_000,
    ],
)
def test_garbage_is_a_checkpoint_error(folder, text):
    (folder / MANIFEST_NAME).write_bytes(text)
    with pytest.raises(CheckpointError, match="manifest"):
        Manifest.read(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b.update(format=2),
        lambda b: b.update(step=-1),
        lambda b: b.update(step=True),
        lambda b: b.update(kinds=["exp_avg"]),
        lambda b: b.update(kinds=[["param"]]),
        lambda b: b.pop("meta"),
        lambda b: b["meta"].update(extra=1),
        lambda b: b["meta"]["model"].update(hidden_size="16"),
        lambda b: b["meta"]["model"].update(num_layers=0),
        lambda b: b["tensors"].update(w=[12, 11]),
        lambda b: b["tensors"].update(more=[2]),
        lambda b: b["tensors"].update(more=[]),
        lambda b: b["files"].pop(),
        lambda b: b["files"][0].pop(),
        lambda b: b["files"][0][1].pop(),
        lambda b: b["files"][0].__setitem__(0, 10**9),
        lambda b: b["chunks"].pop(),
        lambda b: b["chunks"].append(b["chunks"][0]),
        lambda b: b["chunks"][0].__setitem__(5, 9),
        lambda b: b["chunks"][0].__setitem__(6, 4),
        lambda b: b["chunks"][0].__setitem__(7, ["../../etc", "x", "y"]),
        lambda b: b["chunks"][0].__setitem__(3, -4),
    ],
)
def test_values_that_do_not_fit_are_refused_even_with_a_right_digest(folder, change):
    _rewrite(folder, change)
    with pytest.raises(CheckpointError, match="manifest"):
        Manifest.read(folder)


def test_random_damage_never_escapes_as_another_error(folder):
    good, rng = (folder / MANIFEST_NAME).read_bytes(), random.Random(0)
    for _ in range(300):
        bad = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        (folder / MANIFEST_NAME).write_bytes(bad[: rng.choice([len(bad), rng.randrange(len(bad))])])
        try:
            Manifest.read(folder)
        except CheckpointError:
            continue
        assert json.loads(bytes(bad)) == json.loads(good)


def test_fewer_kinds_keep_everything_else(folder):
    manifest = Manifest.read(folder)
    reduced = manifest.with_kinds(("param",))
    reduced.write(folder)
    again = Manifest.read(folder)
    assert again == reduced and not again.is_resumable and again.tensors == manifest.tensors
    assert again.total_bytes < manifest.total_bytes / 2
