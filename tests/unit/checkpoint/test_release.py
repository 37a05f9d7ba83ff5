"""`python -m pretrain.checkpoint release`: what is missing is made, what is there is checked, what fails is said."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from pretrain.checkpoint.__main__ import main
from tests.support.hub_server import TOKEN, HubServer
from tests.support.ranks import environment
from tests.unit.checkpoint.released_run import make_run, score

NAMES = ["step_00000010", "step_00000020", "step_00000025"]


def _release(*arguments):
    return main(["release", *map(str, arguments)])


def _table(capsys):
    """Rows of the table by release, and what was said beside it."""
    shown = capsys.readouterr()
    head, *rows = [line.split("  ") for line in shown.out.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    return {row[2]: row[3:] for row in cells if len(row) > 2}, shown.err


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer_model):
    return make_run(tmp_path_factory.mktemp("made") / "mine", tokenizer_model)


@pytest.fixture
def run(tmp_path, made):
    return shutil.copytree(made, tmp_path / "runs" / "mine")


def test_regular_saves_and_the_last_are_released_and_a_second_time_nothing_is_made(run, capsys):
    assert _release(run) == 0
    rows, _ = _table(capsys)
    assert list(rows) == NAMES and all(cells == ["made", "0"] for cells in rows.values())
    assert sorted(os.listdir(run / "export")) == NAMES
    before = {path: path.stat().st_mtime_ns for path in (run / "export").rglob("*")}
    assert _release(run) == 0
    rows, _ = _table(capsys)
    assert all(cells == ["there, every byte as written", "0"] for cells in rows.values())
    assert {path: path.stat().st_mtime_ns for path in (run / "export").rglob("*")} == before


def test_cards_are_completed_when_scores_have_come(run, capsys):
    _release(run, "--steps", "10,20")
    (run / "probes.jsonl").write_text(score(10, 0.25) + score(10, 0.5) + score(20, 0.75)[:-9])  # a line cut short
    assert _release(run, "--steps", "10,20") == 0
    rows, _ = _table(capsys)
    assert [rows[name][-1] for name in NAMES[:2]] == ["1", "0"]
    card = (run / "export" / NAMES[0] / "README.md").read_text()
    assert "| arc | acc | 5 | 0.5000 | 0.0100 | 100 | own |" in card and "0.2500" not in card
    assert "No scores yet." in (run / "export" / NAMES[1] / "README.md").read_text()


def test_name_dtype_and_folder_are_ones_own(run, tmp_path, capsys):
    options = ["--steps", "20", "--out", tmp_path / "out", "--dtype", "bfloat16", "--name", "ckpt_{index:03d}"]
    assert _release(run, *options) == 0
    assert os.listdir(tmp_path / "out") == ["ckpt_001"] and not (run / "export").exists()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out/ckpt_001")
    assert model.dtype == torch.bfloat16
    assert _release(run, *options[:4], "--name", "ckpt_{index:03d}") == 1
    rows, said = _table(capsys)
    assert "ckpt_001 is bfloat16, not float32" in said


def test_what_fails_for_one_save_does_not_keep_the_others_back(run, capsys):
    _release(run)
    shard = run / "checkpoints/step_00000020/param_00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    for name in NAMES[1:]:
        shutil.rmtree(run / "export" / name)
    config = run / "export" / NAMES[0] / "config.json"
    config.write_text(config.read_text().replace("500", "512"))
    capsys.readouterr()
    assert _release(run) == 1
    rows, said = _table(capsys)
    assert [rows[name][0] for name in NAMES] == ["FAILED", "FAILED", "made"]
    assert "config.json is not what was written" in said and "is damaged" in said
    assert _release(run, "--steps", "11,25") == 1
    assert "no save of step 11; there are 0, 10, 20, 25" in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_made_and_changes_nothing(run, capsys):
    assert _release(run, "--dry-run", "--repository", "me/mine") == 0
    rows, _ = _table(capsys)
    assert rows[NAMES[0]] == ["would be made", "0", "would look at me/mine@step_00000010"]
    assert rows[NAMES[2]][-1] == "would look at me/mine@step_00000025, would look at me/mine@main"
    assert sorted(os.listdir(run)) == ["checkpoints", "config.yaml", "tokenizer.model"]


def test_saves_at_multiples_of_a_duration_are_released_on_demand(run, capsys):
    assert _release(run, "--dry-run", "--every", "20 steps") == 0
    rows, _ = _table(capsys)
    assert list(rows) == ["step_00000000", *NAMES[1:]]
    for every, said in (("0 steps", "longer than nothing"), ("often", "--every")):
        assert _release(run, "--every", every) == 2
        assert said in capsys.readouterr().err


def test_a_file_system_without_locks_and_one_that_refuses(run, monkeypatch, tmp_path, capsys):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert _release(run, "--steps", "10") == 0
    (tmp_path / "file").write_text("")
    assert _release(run, "--steps", "10", "--out", tmp_path / "file" / "out") == 1
    assert "cannot be written: Not a directory. Choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--name", "--repository"])
def test_saves_that_would_share_a_name_are_not_released_over_each_other(run, capsys, option):
    assert _release(run, "--steps", "10", option, "{billions}B") == 2
    assert "gives steps 0 and 10 the same name, 0.0B" in capsys.readouterr().err
    assert not (run / "export").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--name", "x"], "--name='x' gives every checkpoint the same name"), (["--repository", "a/b/c"], "--repository")],
)
def test_templates_that_do_not_work_are_refused(run, capsys, options, message):
    assert _release(run, *options) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_explained(tmp_path, capsys):
    assert _release(tmp_path) == 2
    assert str(tmp_path / "config.yaml") in capsys.readouterr().err


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with HubServer().running() as running:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        yield running


def _on_disk(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_each_release_is_a_revision_and_the_last_is_main_too(run, server, capsys):
    assert _release(run, "--repository", "me/{run}") == 0
    repository = server.repositories["me/mine"]
    for name in NAMES:
        assert repository.files(name) == _on_disk(run / "export" / name)
    assert repository.files("main") == repository.files(NAMES[-1])
    assert (
        'from_pretrained("me/mine", revision="step_00000010", dtype="auto")'
        in repository.files(NAMES[0])["README.md"].decode()
    )
    rows, _ = _table(capsys)
    assert rows[NAMES[0]][-1] == "8 files to me/mine@step_00000010"
    uploads = len(server.sent("^PUT|/commit/"))
    (run / "probes.jsonl").write_text(score(20, 0.5))
    assert _release(run, "--repository", "me/{run}") == 0
    rows, _ = _table(capsys)
    assert [rows[name][-1].split(" files")[0] for name in NAMES] == ["no", "1", "no"]
    assert len(server.sent("^PUT|/commit/")) == uploads + 1


def test_each_release_has_a_repository_of_its_own_where_the_template_says_so(run, server):
    assert _release(run, "--steps", "10,20", "--repository", "me/Mine-{step}") == 0
    assert sorted(server.repositories) == ["me/Mine-10", "me/Mine-20"]
    for step, name in ((10, NAMES[0]), (20, NAMES[1])):
        repository = server.repositories[f"me/Mine-{step}"]
        assert list(repository.branches) == ["main"] and repository.files("main") == _on_disk(run / "export" / name)


def test_a_push_that_fails_is_a_failure_of_its_row(run, server, capsys):
    server.fail = lambda request: 403 if "commit/step_00000020" in request else None
    assert _release(run, "--repository", "me/mine") == 1
    rows, said = _table(capsys)
    assert rows[NAMES[1]] == ["made", "0", "FAILED"] and "write access" in said
    assert rows[NAMES[2]][-1] == "8 files to me/mine@step_00000025, 8 files to me/mine@main"
    server.fail = lambda request: None
    assert _release(run, "--repository", "me/mine") == 0
    assert server.repositories["me/mine"].files(NAMES[1]) == _on_disk(run / "export" / NAMES[1])


@pytest.mark.slow
def test_a_release_killed_at_any_call_to_the_disk_goes_on_where_it_was(tmp_path, tokenizer_model):
    run = make_run(tmp_path / "mine", tokenizer_model, steps=(10, 20))
    command = [sys.executable, "-m", "tests.unit.checkpoint.release_kill_driver", str(run), "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment())
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) > 3 and [row["killed"] for row in rows] == [True] * (len(rows) - 1) + [False]
    assert all(row["sound"] and row["again"] == 0 and row["same"] for row in rows), rows
    assert any(name.startswith(".step_00000010~") for row in rows for name in row["left"])
