"""`python -m probes prefetch`, with a folder in place of the hub, and without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from probes.__main__ import main
from probes.harness import load_harness
from probes.suite import load_suite
from tests.unit.probes.conftest import MULTIPLE_CHOICE

Capture = pytest.CaptureFixture[str]


def items(first: int, number: int) -> list[dict[str, Any]]:
    return [
        {"question": f"{n} + 1 =", "choices": [str(n), str(n + 1)], "gold": 1} for n in range(first, first + number)
    ]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two data sets in a folder, which `load_dataset` reads by their names on the hub; the names asked for."""
    splits = {"train": items(20, 4), "validation": items(0, 3), "test": items(10, 5), "extra": items(0, 1)}
    for path, chosen in (("org/sums/easy", ("train", "validation", "test", "extra")), ("org/plain", ("validation",))):
        folder = tmp_path / "hub" / path
        folder.mkdir(parents=True)
        for split in chosen:
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in splits[split]))
    asked: list[str] = []
    original = datasets.load_dataset

    def from_folder(path: str, name: str | None = None, **options: Any) -> Any:
        asked.append(f"{path} {name}")
        folder = tmp_path / "hub" / path / (name or "")
        return original(str(folder) if folder.is_dir() else path, **options)

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    return asked


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Arguments: a suite of two tasks and a group, whose data are on the hub."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    definition = {**MULTIPLE_CHOICE, "doc_to_text": "{{question}}"}
    sums = {"dataset_path": "org/sums", "dataset_name": "easy", "validation_split": "validation"}
    tested = {"test_split": "test", "fewshot_split": "train", "training_split": "train"}
    plain = {"dataset_path": "org/plain", "validation_split": "validation", "training_split": "none_such"}
    for name, data in (("sums", {**sums, **tested}), ("sums_too", sums), ("plain", plain)):
        (tasks / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **data, **definition}))
    (tasks / "both.yaml").write_text("group: both\ntask: [sums_too, plain]\n")
    suite = tmp_path / "two.yaml"
    lines = [{"task": "sums", "domain": "d", "num_fewshot": 2}, {"task": "both", "domain": "d"}]
    suite.write_text(yaml.safe_dump({"tasks": lines}))
    return [f"suite={suite}", f"data_dir={tmp_path / 'data'}", f"task_paths=[{tasks}]"]


def test_every_split_a_task_needs_is_fetched_once(
    hub: list[str], words: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["prefetch", *words]) == 0
    assert hub == ["org/sums easy", "org/plain None"]
    found = sorted(str(path.relative_to(tmp_path / "data")) for path in (tmp_path / "data").rglob("*.parquet"))
    assert found == ["org/plain/default/validation.parquet"] + [
        f"org/sums/easy/{split}.parquet" for split in ("test", "train", "validation")
    ]
    assert not list((tmp_path / "data").rglob("*.partial")) and not list((tmp_path / "data").rglob(".fetching*"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*.parquet")}
    assert main(["prefetch", *words]) == 0
    assert len(hub) == 2 and before == {path: path.stat().st_mtime_ns for path in before}
    assert "org/plain is in" in capsys.readouterr().out

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    suite = load_suite(words[0].partition("=")[2])
    harness = load_harness(suite, task_paths=[tmp_path / "tasks"], data_dir=tmp_path / "data")
    assert [len(task.task.instances) for task in harness.tasks] == [10, 6, 6]
    assert harness.tasks[0].task.instances[0].args[0].count("+ 1 =") == 3


def test_a_split_that_another_task_needs_later_is_fetched_then(
    hub: list[str], words: list[str], tmp_path: Path
) -> None:
    late = tmp_path / "late.yaml"
    late.write_text(yaml.safe_dump({"tasks": [{"task": "sums_too", "domain": "d"}]}))
    assert main(["prefetch", f"suite={late}", *words[1:]]) == 0
    folder = tmp_path / "data" / "org" / "sums" / "easy"
    assert [path.name for path in folder.glob("*.parquet")] == ["validation.parquet"]
    assert main(["prefetch", *words]) == 0
    assert sorted(path.name for path in folder.glob("*.parquet")) == [
        "test.parquet", "train.parquet", "validation.parquet"
    ]  # fmt: skip


def test_a_list_of_splits_that_a_crash_emptied_is_fetched_again(
    hub: list[str], words: list[str], tmp_path: Path
) -> None:
    assert main(["prefetch", *words]) == 0
    folder = tmp_path / "data" / "org" / "sums" / "easy"
    splits = folder / ".splits.json"
    whole = splits.read_text()
    splits.write_text("")
    (folder / "test.parquet").unlink()
    assert main(["prefetch", *words]) == 0
    assert hub[2:] == ["org/sums easy"] and splits.read_text() == whole and (folder / "test.parquet").is_file()


def test_files_that_are_there_are_kept(hub: list[str], words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "data" / "org" / "sums" / "easy"
    folder.mkdir(parents=True)
    for split in ("test", "validation", "train"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items(70, 2)))
    assert main(["prefetch", *words]) == 0
    assert hub == ["org/plain None"] and not list(folder.glob("*.parquet"))


def test_data_sets_that_cannot_be_fetched_are_named_together(
    hub: list[str], words: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gated(path: str, **_: Any) -> None:
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset {path!r} is a gated dataset on the Hub.")

    monkeypatch.setattr(datasets, "load_dataset", gated)
    assert main(["prefetch", *words]) == 1
    error = capsys.readouterr().err
    assert "2 problem(s)" in error and "set HF_TOKEN" in error
    assert "org/sums (easy) of task sums cannot be fetched" in error and "org/sums (easy) of task sums_too" in error
    assert not list((tmp_path / "data").rglob("*.parquet"))


def test_an_interrupted_fetch_leaves_nothing_half(
    hub: list[str], words: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets.Dataset, "to_parquet", full)
    assert main(["prefetch", *words]) == 1
    assert "No space left" in capsys.readouterr().err
    assert not list((tmp_path / "data").rglob("*.parquet"))
    monkeypatch.undo()


@pytest.mark.slow
def test_without_a_network_the_first_data_set_says_so(words: list[str], tmp_path: Path) -> None:
    # A port of this machine that nobody listens on stands for a hub that cannot be reached.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    line = [sys.executable, "-m", "probes", "prefetch", *words]
    result = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 1, result.stderr
    assert "Data set org/sums (easy) of task sums cannot be fetched" in result.stderr
    assert "the Hugging Face hub cannot be reached" in result.stderr and "where there is a network" in result.stderr
    assert "Traceback" not in result.stderr and "org/plain" not in result.stderr


def test_missing_arguments_are_named(capsys: Capture) -> None:
    assert main(["prefetch", "suit=demo"]) == 2
    assert "Did you mean suite" in capsys.readouterr().err
    assert main(["prefetch"]) == 2
    error = capsys.readouterr().err
    assert "suite= is missing" in error and "data_dir= is missing" in error
