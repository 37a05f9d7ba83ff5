"""Amber and OpenLLaMA on a CPU: their nanos, made smaller still, from the first chunk to releases that others load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from pretrain.data.inspect import show_step
from tests.support import runs
from tests.support.lm_eval_answers import lm_eval_answers

LAST, BATCH = 24, 8
LIMITS = {"fineline_blimp": 40, "fineline_lambada": 12, "fineline_arc_easy": 15}
NUM_CHUNKS = 23  # of which six are trained on: four steps each
AMBER = ["experiment=amber_nano", "data=own", "data.order=chunked", f"data.num_chunks={NUM_CHUNKS}"]
AMBER += ["data.sources.tales.weight=1", "data.sources.lists.weight=1", "track=[jsonl,wandb]"]
OPENLLAMA = ["experiment=openllama_nano", "data=own", "checkpoint.every=4 steps", "checkpoint.milestones=8 steps"]
OPENLLAMA += ["checkpoint.keep=1", "track=[jsonl]"]


def arguments(folder: Path, name: str, recipe: list[str]) -> list[str]:
    """A nano on a text of 600 documents, with a suite of three tasks."""
    return [
        *(f"run.dir={folder / 'runs'}", f"run.name={name}", f"--config-dir={folder / 'conf'}", *recipe),
        *("data.validation_tokens=1500", "tokenizer.vocab_size=400", "tokenizer.training_bytes=200_000"),
        *("model.num_layers=2", f"train.steps={LAST}", f"train.global_batch_size={BATCH}", "train.micro_batch_size=2"),
        f"probe.suite={runs.write_suite(folder)}",
    ]


def complete(folder: Path, name: str, recipe: list[str], *, kill_at: tuple[int, ...] = ()) -> Path:
    """A finished run, killed with all its processes as soon as each of these steps is in the record."""
    log, directory = folder / f"{name}.log", folder / "runs" / name
    for step in kill_at:
        process = runs.start(arguments(folder, name, recipe), log=log)
        runs.wait_until_step(directory, step, process)
        assert process.poll() is None, log.read_text()[-5000:]
        runs.kill(process)
    assert runs.finish(arguments(folder, name, recipe), log=log) == 0, log.read_text()[-5000:]
    return directory


@pytest.fixture(scope="module")
def amber(folder: Path) -> Path:
    return complete(folder, "amber", AMBER)


@pytest.fixture(scope="module")
def openllama(folder: Path) -> Path:
    return complete(folder, "openllama", OPENLLAMA)


def samples(directory: Path) -> list[tuple[str, int, int]]:
    """Source, epoch and window of every sample, in the order in which they were trained on."""
    return [(s.source, s.epoch, s.window) for step in range(1, LAST + 1) for s in show_step(directory, step=step)]


def saved(directory: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (directory / "checkpoints").glob("step_*"))


def of_clock(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what a clock measured, and without the run's name."""
    timed = ("perf/", "time/", "seconds", "run", "config_hash")
    return {key: value for key, value in row.items() if not key.startswith(timed)}


def assert_same_run(got: Path, expected: Path) -> None:
    """Bitwise the same weights, moments, samples, rows and scores."""
    runs.assert_same_state(expected / f"checkpoints/step_{LAST:08d}", got / f"checkpoints/step_{LAST:08d}")
    assert samples(got) == samples(expected)
    for rows in (runs.metrics, runs.probes):
        assert [of_clock(row) for row in rows(got)] == [of_clock(row) for row in rows(expected)]


def assert_scores_are_the_live_models(release: Path, directory: Path, step: int) -> None:
    """transformers loads it with its true vocabulary; lm-eval answers every request as the live model did.

    The release is in bfloat16, the live model was in fp32: each weight is 2^-9 of itself off at most, and that share of
    a log-likelihood is allowed, with 0.02 nats for short ones.
    """
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(release)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.get_input_embeddings().num_embeddings == len(AutoTokenizer.from_pretrained(release)) == 400
    (file,) = (directory / "items").glob(f"*/step_{step:08d}.parquet")
    items = pq.read_table(file).to_pylist()
    recorded = {(r["metric"], r["task"]): r["value"] for r in runs.probes(directory) if r["step"] == step}
    for task, (answers, accuracy) in lm_eval_answers(release, LIMITS).items():
        ours = [row for row in items if row["task"] == task]
        assert len(ours) == len(answers)
        for row in ours:
            live = row["log_likelihood"]
            assert abs(live - answers[row["item"], row["choice"]][0]) <= 2**-9 * abs(live) + 0.02
        # An item may flip where two answers were nearly alike.
        assert recorded["acc", task] == pytest.approx(accuracy, abs=1.5 / LIMITS[task])


def test_amber_trains_on_six_chunks_in_order_and_saves_at_the_end_of_each(amber: Path) -> None:
    ends = json.loads((amber / "order.json").read_text())["chunk_ends"]
    assert saved(amber) == [0, *ends] and len(ends) == 6 and ends[-1] == LAST
    order, first = samples(amber), 0
    for chunk, end in enumerate(ends):
        within = order[first * BATCH : end * BATCH]
        assert {window % NUM_CHUNKS for _, _, window in within} == {chunk}
        assert len(set(within)) == len(within) and within != sorted(within), "each once, shuffled"
        first = end
    names = sorted(path.name for path in (amber / "export").iterdir())
    assert names == [*(f"ckpt_{chunk:03d}" for chunk in range(6)), "step_00000000"]


def test_amber_killed_within_a_chunk_and_between_chunks_is_bitwise_the_same(folder: Path, amber: Path) -> None:
    ends = json.loads((amber / "order.json").read_text())["chunk_ends"]
    killed = complete(folder, "amber_killed", AMBER, kill_at=(ends[1] + 2, ends[3]))
    assert sum(event["kind"] == "resume" for event in runs.events(killed)) == 2
    wandb_runs = {path.name.rsplit("-", 1)[1] for path in (killed / "wandb").glob("offline-run-*")}
    assert len(wandb_runs) == 1, "every start continues the same W&B run"
    assert_same_run(killed, amber)


def test_a_release_of_amber_scores_in_lm_eval_as_the_live_model_did(amber: Path) -> None:
    assert_scores_are_the_live_models(amber / "export/ckpt_005", amber, LAST)


def test_openllama_saves_six_times_and_milestones_stay_resumable(openllama: Path) -> None:
    assert saved(openllama) == [0, 4, 8, 12, 16, 20, 24]
    resumable = {path.parent.name for path in (openllama / "checkpoints").glob("*/exp_avg_00000.safetensors")}
    assert resumable == {"step_00000008", "step_00000016", "step_00000024"}
    names = {path.name for path in (openllama / "export").iterdir()}
    assert names == {f"openllama_step_{step}" for step in (0, 4, 8, 12, 16, 20, 24)}


@pytest.mark.slow
def test_openllama_killed_and_started_again_is_bitwise_the_same(folder: Path, openllama: Path) -> None:
    assert_same_run(complete(folder, "openllama_killed", OPENLLAMA, kill_at=(13,)), openllama)


def test_a_release_of_openllama_scores_in_lm_eval_as_the_live_model_did(openllama: Path) -> None:
    assert_scores_are_the_live_models(openllama / "export/openllama_step_24", openllama, LAST)
