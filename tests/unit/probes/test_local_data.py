"""lm-eval's own tasks on data from plain files, compared with lm-eval given the same items."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from pretrain.errors import ProbeError
from probes.harness import load_harness
from probes.local_data import find_splits, read_split
from probes.suite import Suite, TaskSpec

LABELS = ["A", "B", "C", "D"]


def arc_items(first: int, number: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"item {n}",
            "question": f"What is {n} + 1?",
            "choices": {"text": [str(n + k) for k in range(4)], "label": LABELS},
            "answerKey": "B",
        }
        for n in range(first, first + number)
    ]


def mmlu_items(first: int, number: int) -> list[dict[str, Any]]:
    return [
        {"question": f" What is {n}?", "subject": "abstract_algebra", "choices": ["a", "b", "c", str(n)], "answer": 3}
        for n in range(first, first + number)
    ]


def write_jsonl(path: Path, items: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(item) + "\n" for item in items).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ARC as JSON lines and Parquet, one subject of MMLU as compressed JSON lines."""
    folder = tmp_path_factory.mktemp("data")
    arc = folder / "allenai" / "ai2_arc" / "ARC-Challenge"
    write_jsonl(arc / "test.jsonl", arc_items(0, 6))
    datasets.Dataset.from_list(arc_items(10, 8)).to_parquet(arc / "train.parquet")
    mmlu = folder / "cais" / "mmlu" / "abstract_algebra"
    write_jsonl(mmlu / "test.jsonl.gz", mmlu_items(0, 5))
    write_jsonl(mmlu / "dev.jsonl.gz", mmlu_items(10, 5))
    return folder


SPLITS = {
    "arc_challenge": {"test": arc_items(0, 6), "train": arc_items(10, 8)},
    "mmlu_abstract_algebra": {"test": mmlu_items(0, 5), "dev": mmlu_items(10, 5)},
}


@pytest.fixture(scope="module")
def lm_eval_tasks() -> Any:
    """lm-eval's own index, which takes many seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shots"), [("arc_challenge", 0), ("arc_challenge", 3), ("mmlu_abstract_algebra", 5)])
def test_prompts_are_those_of_lm_eval_with_the_same_items(
    name: str, shots: int, data_dir: Path, lm_eval_tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = Suite("s", (TaskSpec(task=name, domain="d", num_fewshot=shots),))
    (found,) = load_harness(suite, data_dir=data_dir).tasks

    def from_memory(path: str, **kwargs: Any) -> dict[str, datasets.Dataset]:
        return {split: datasets.Dataset.from_list(items) for split, items in SPLITS[name].items()}

    monkeypatch.setattr(datasets, "load_dataset", from_memory)
    expected = lm_eval_tasks.load([name])["tasks"][name]
    expected.set_config("num_fewshot", shots)
    expected.set_fewshot_seed(1234)
    expected.build_all_requests()
    instances = found.task.instances
    assert [instance.args for instance in instances] == [instance.args for instance in expected.instances]
    assert [instance.doc for instance in instances] == [instance.doc for instance in expected.instances]
    assert instances[0].args[0].count("Answer:") == shots + 1


def test_a_split_that_only_examples_need_may_be_missing_without_examples(data_dir: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "allenai" / "ai2_arc" / "ARC-Challenge" / "test.jsonl", arc_items(0, 2))
    bare = Suite("s", (TaskSpec(task="arc_challenge", domain="d"),))
    assert len(load_harness(bare, data_dir=tmp_path).tasks[0].task.instances) == 8
    with pytest.raises(ProbeError, match="draws its 2 examples from split 'train', which .*ARC-Challenge has not"):
        load_harness(Suite("s", (TaskSpec(task="arc_challenge", domain="d", num_fewshot=2),)), data_dir=tmp_path)


def test_missing_data_are_refused_with_the_task_and_what_would_help(tmp_path: Path) -> None:
    suite = Suite("s", (TaskSpec(task="arc_challenge", domain="d"),))
    with pytest.raises(ProbeError, match="probe.data_dir=.*nowhere"):
        load_harness(suite, data_dir=tmp_path / "nowhere")
    with pytest.raises(ProbeError, match="(?s)Task arc_challenge of .* cannot be loaded.*python -m probes prefetch"):
        load_harness(suite, data_dir=tmp_path)
    write_jsonl(tmp_path / "allenai" / "ai2_arc" / "ARC-Challenge" / "train.jsonl", arc_items(0, 2))
    with pytest.raises(ProbeError, match="Task arc_challenge needs split 'test', but .* has train only"):
        load_harness(suite, data_dir=tmp_path)


def test_parquet_wins_and_names_that_leave_the_folder_are_not_followed(tmp_path: Path) -> None:
    for suffix in (".parquet", ".jsonl", ".jsonl.gz"):
        (tmp_path / "a" / "b" / "default").mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / "b" / "default" / f"test{suffix}").touch()
    assert find_splits(tmp_path, "a/b", None) == {"test": tmp_path / "a" / "b" / "default" / "test.parquet"}
    assert find_splits(tmp_path / "x", "../a/b", None) == find_splits("/", str(tmp_path / "a" / "b"), None) == {}
    assert find_splits(tmp_path, None, None) == {}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("test.jsonl", b"{"),
        ("test.jsonl", b"[1]\n"),
        ("test.jsonl", b""),
        ("test.jsonl.gz", b"no gzip"),
        ("test.parquet", b""),
    ],
)
def test_damaged_data_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ProbeError, match=name):
        read_split(tmp_path / name)


@pytest.mark.parametrize("name", ["test.jsonl", "test.jsonl.gz", "test.JSONL", "test.jsonl.GZ"])
def test_a_byte_order_mark_is_no_item_and_an_ending_may_be_in_capitals(tmp_path: Path, name: str) -> None:
    content = b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n'
    path = tmp_path / "a" / "b" / "default" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(content) if "gz" in name.lower() else content)
    assert find_splits(tmp_path, "a/b", None) == {"test": path}
    assert list(read_split(path)) == [{"a": 1}, {"a": 2}]


def test_features_that_datasets_stored_are_kept_and_fields_may_be_missing(tmp_path: Path) -> None:
    features = datasets.Features({"label": datasets.ClassLabel(names=["no", "yes"])})
    datasets.Dataset.from_dict({"label": [1, 0]}, features=features).to_parquet(tmp_path / "test.parquet")
    assert read_split(tmp_path / "test.parquet").features["label"].names == ["no", "yes"]
    write_jsonl(tmp_path / "test.jsonl", [{"a": 1}, {"a": 2, "b": "2020-01-01"}])
    assert list(read_split(tmp_path / "test.jsonl")) == [{"a": 1, "b": None}, {"a": 2, "b": "2020-01-01"}]


def test_task_files_get_a_stand_in_for_evaluate_and_the_rest_of_it(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import evaluate\n"
        "answer = evaluate.load('code_eval').compute(references=['x'], predictions=[['y']], k=[1])[0]\n"
        "assert answer == {'pass@1': 0.0}\n"
        "def docs(dataset):\n"
        "    assert evaluate.EvaluationModule is not None\n"
        "    return dataset\n"
    )
    write_jsonl(tmp_path / "org" / "x" / "default" / "test.jsonl", [{"q": "a", "choices": ["a", "b"], "gold": 0}])
    (tmp_path / "own.yaml").write_text(
        "task: own\ndataset_path: org/x\ntest_split: test\noutput_type: multiple_choice\ndoc_to_text: q\n"
        "doc_to_choice: choices\ndoc_to_target: gold\nprocess_docs: !function own.docs\n"
    )
    suite = Suite("s", (TaskSpec(task="own", domain="d"),))
    assert len(load_harness(suite, task_paths=[tmp_path], data_dir=tmp_path).tasks[0].task.instances) == 2
    import evaluate

    assert evaluate.__file__ and evaluate.load.__module__.startswith("evaluate.")


def test_lm_evals_own_tasks_are_found_without_its_index(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from probes import finder

    def refuse() -> None:
        raise AssertionError("the whole index was read")

    monkeypatch.setattr(finder, "_builtin_manager", refuse)
    specs = tuple(TaskSpec(task=name, domain="d") for name in SPLITS)
    harness = load_harness(Suite("s", specs), data_dir=data_dir)
    assert [task.name for task in harness.tasks] == list(SPLITS)


@pytest.mark.slow
def test_every_task_is_found_where_lm_evals_index_has_it(lm_eval_tasks: Any) -> None:
    from probes import finder

    kinds = {name: entry for name, entry in lm_eval_tasks.task_index.items() if entry.kind.name in ("TASK", "PY_TASK")}
    assert {name.decode() for name in finder._task_lines()} == set(kinds)
    for name, paths in finder._task_lines().items():
        assert paths[0].resolve() == kinds[name.decode()].yaml_path.resolve()


def test_a_group_of_ones_own_may_list_lm_evals_tasks(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("group: mine\ntask: [arc_challenge, mmlu_abstract_algebra]\n")
    suite = Suite("s", (TaskSpec(task="mine", domain="d"),))
    tasks = load_harness(suite, task_paths=[tmp_path], data_dir=data_dir).tasks
    assert [task.name for task in tasks] == ["arc_challenge", "mmlu_abstract_algebra"]
