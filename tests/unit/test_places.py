"""Folders are recognised by what this program writes into them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.checkpoint.__main__ import main as checkpoint_main
from pretrain.checkpoint.huggingface_config import CONFIG_NAME as MODEL_CONFIG_NAME
from pretrain.checkpoint.reader import list_checkpoints
from pretrain.config.run import RunConfig, RunSection
from pretrain.data.__main__ import main as data_main
from pretrain.data.manifest import FORMAT, MANIFEST_NAME, TOKENIZER_NAME
from pretrain.data.run_order import ORDER_NAME
from pretrain.directory import claim
from pretrain.errors import ConfigError
from pretrain.locate import CHECKPOINTS, CONFIG_NAME, EXPORTS
from pretrain.places import _RUN_FILES, names_besides, what_is
from pretrain.track.jsonl import EVENTS_FILE, METRICS_FILE
from probes.journal import JOURNAL_FILE
from probes.partial import PARTIAL_FOLDER
from probes.store import ITEMS_FOLDER, MISSING_FILE, PROBES_FILE
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
    files = {
        CONFIG_NAME,
        ORDER_NAME,
        TOKENIZER_NAME,
        METRICS_FILE,
        EVENTS_FILE,
        PROBES_FILE,
        MISSING_FILE,
        JOURNAL_FILE,
    }
    assert files | {CHECKPOINTS, EXPORTS, ITEMS_FOLDER, PLANS_FOLDER, PARTIAL_FOLDER} < _RUN_FILES


def _exit_code_as_another_user(work: Callable[[], int]) -> int:
    """What work returns in a forked process of a user who may only do what everybody may."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            if os.geteuid() == 0:
                os.setegid(65534)
                os.seteuid(65534)
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("command", [["data", "check"], ["checkpoint", "list"], ["checkpoint", "inspect"]])
def test_a_folder_that_may_not_be_read_is_named_without_a_traceback(
    command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    main = {"data": data_main, "checkpoint": checkpoint_main}[command[0]]
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # above pytest's own nobody else may look
        os.chmod(folder, 0o755)
        closed = Path(folder) / "closed"
        closed.mkdir(mode=0)
        assert _exit_code_as_another_user(lambda: main([*command[1:], str(closed)])) == 1
        printed = capfd.readouterr().err
        assert str(closed) in printed and "Permission denied" in printed and "Traceback" not in printed
        assert _exit_code_as_another_user(lambda: int(what_is(closed) == "cannot be read (Permission denied)")) == 1
        assert _exit_code_as_another_user(lambda: _claim(closed)) == 2
        closed.chmod(0o700)


def _claim(folder: Path) -> int:
    config = RunConfig(run=RunSection(name="mine", dir=str(folder)))
    with pytest.raises(ConfigError, match=r"run\.dir=.*Permission denied.*you may read and write"):
        claim(config, find_saves=list_checkpoints, warn=print)
    return 2
