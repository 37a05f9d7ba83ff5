"""Folders are recognised by what this program writes into them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pretrain.checkpoint.huggingface_config import CONFIG_NAME as MODEL_CONFIG_NAME
from pretrain.data.manifest import FORMAT, MANIFEST_NAME, TOKENIZER_NAME
from pretrain.data.run_order import ORDER_NAME
from pretrain.locate import CHECKPOINTS, CONFIG_NAME, EXPORTS
from pretrain.places import _RUN_FILES, names_besides, what_is
from pretrain.track.jsonl import EVENTS_FILE, METRICS_FILE
from probes.journal import JOURNAL_FILE
from probes.partial import PARTIAL_FOLDER
from probes.store import ITEMS_FOLDER, PROBES_FILE
from probes.tier import PLANS_FOLDER
from tests.unit.checkpoint.ranks import save_random


def test_every_kind_is_named(tmp_path: Path) -> None:
    assert what_is(tmp_path / "nothing") == "does not exist"
    assert what_is(Path(__file__)) == "is a file, not a folder"
    assert what_is(tmp_path) == "is an empty folder"
    run = tmp_path / "run"
    checkpoint = save_random(run / CHECKPOINTS, 10, world_size=1)
    assert what_is(checkpoint) == "is a checkpoint"
    assert what_is(run / CHECKPOINTS) == "is a folder of checkpoints"
    (run / CONFIG_NAME).write_text("")
    assert what_is(run) == "is a run directory"
    (run / ORDER_NAME).write_text('{"prepared": "/data/tokens"}')
    assert what_is(run) == "is a run directory (its prepared data is in /data/tokens)"
    folder = tmp_path / "other"
    folder.mkdir()
    for name, content, text in (
        (MANIFEST_NAME, f'{{"format": "{FORMAT}"}}', "is a folder of prepared data"),
        (MODEL_CONFIG_NAME, "{}", "is a Hugging Face folder"),
        (MANIFEST_NAME, "{}", "is a folder that this program did not write; it holds manifest.json"),
        (MANIFEST_NAME, "not JSON", "is a folder that this program did not write; it holds manifest.json"),
    ):
        (folder / name).write_text(content)
        assert what_is(folder) == text
        (folder / name).unlink()
    for name in "abcde":
        (folder / name).write_text("")
    assert what_is(folder).endswith("it holds a, b, c and 2 more")
    assert names_besides(folder, "abc") == ["d", "e"]


def test_all_that_a_run_writes_is_known() -> None:
    files = {CONFIG_NAME, ORDER_NAME, TOKENIZER_NAME, METRICS_FILE, EVENTS_FILE, PROBES_FILE, JOURNAL_FILE}
    assert files | {CHECKPOINTS, EXPORTS, ITEMS_FOLDER, PLANS_FOLDER, PARTIAL_FOLDER} < _RUN_FILES


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    assert what_is(tmp_path / "closed") == "is an empty folder"
