"""The items of public benchmarks, scored in every layout, against lm-eval's HFLM on the same weights.

Needs the items (see `tests.support.eval_data`), which are not part of the repository.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.data.tokenizer import Tokenizer
from pretrain.data.tokenizer_training import train_tokenizer
from pretrain.engine.base import TokenLogProbs
from pretrain.model.spec import ModelSpec
from probes.compile import Wanted, compile_suite
from probes.harness import Harness
from probes.plan import Plan, PlanSettings
from probes.score import Answers, CheckpointFacts, gather_answers, measure
from probes.suite import Suite, TaskSpec
from tests.parity.real_items_workers import LENGTH, VOCAB, model_config
from tests.support.eval_data import eval_source, missing_reason, write_eval_data
from tests.support.hf_scorer import hf_tokenizer
from tests.support.ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.skipif(eval_source() is None, reason=missing_reason())]

ITEMS = 200
TWO = [
    ("DP2", {}),
    ("TP2, sequence parallel", {"tensor": 2, "sequence": True}),
    ("PP2", {"pipeline": 2}),
    ("PP2 x VPP2", {"pipeline": 2, "virtual_pipeline": 2}),
    ("CP2", {"context": 2}),
]
LAYOUTS: dict[int, list[tuple[str, dict[str, Any]]]] = {
    1: [("one process", {})],
    2: TWO,
    4: [("TP2 x PP2", {"tensor": 2, "pipeline": 2})],
}
NAMES = [name for layouts in LAYOUTS.values() for name, _ in layouts]

ZERO_SHOT = ("piqa", "hellaswag", "arc_easy", "openbookqa", "winogrande", "boolq", "sciq", "lambada_openai")
FEW_SHOT = {"arc_challenge": 5, "mmlu_abstract_algebra": 5, "mmlu_anatomy": 5, "cmmlu_agronomy": 5, "cmmlu_anatomy": 5}
CEVAL = ("accountant", "civil_servant", "tax_accountant", "teacher_qualification", "physician")
SUITE = Suite(
    "real",
    (
        *(TaskSpec(task=name, domain="zero_shot", num_fewshot=0, limit=ITEMS) for name in ZERO_SHOT),
        *(TaskSpec(task=name, domain="few_shot", num_fewshot=n, limit=ITEMS) for name, n in FEW_SHOT.items()),
        *(TaskSpec(task=f"ceval-valid_{name}", domain="few_shot", num_fewshot=5) for name in CEVAL),
        TaskSpec(task="truthfulqa_mc2", domain="zero_shot", limit=ITEMS),
        TaskSpec(task="blimp_adjunct_island", domain="zero_shot", num_fewshot=0, limit=ITEMS),
        TaskSpec(task="greedy", domain="zero_shot"),
    ),
)


@dataclass
class Scored:
    """One plan, the answers of each layout to it, and HFLM's in fp32 and float64."""

    plan: Plan
    harness: Harness
    layouts: dict[str, Answers]
    digests: dict[str, set[str]]
    hflm: Answers
    exact: Answers

    def metrics(self, answers: Answers) -> dict[tuple[str, str], float]:
        facts = CheckpointFacts(run="r", step=0, tokens=0, flops=0.0, config_hash="c")
        rows = measure(self.plan, answers, self.harness, facts, seconds=0.0)
        return {(row.domain + "/" + row.task, row.metric): row.value for row in rows}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scored]:
    root = tmp_path_factory.mktemp("real")
    write_eval_data(root / "data", limit=ITEMS)
    tokenizer = _tokenizer(root)
    model = _model(root / "model")
    _write_greedy_task(root / "tasks", model, tokenizer)
    settings = PlanSettings(max_length=LENGTH, add_bos=True)
    wanted = Wanted(
        suite=SUITE, tokenizer=tokenizer, settings=settings, task_paths=[root / "tasks"], data_dir=root / "data"
    )
    plan, harness = compile_suite(wanted, plans=root / "plans")
    layouts, digests = {}, {}
    for world_size, listed in LAYOUTS.items():
        payload = (listed, root / "model", root / "plans" / plan.plan_hash)
        ranks = run_ranks("tests.parity.real_items_workers:score", world_size, payload, timeout_seconds=3000)
        for name, _ in listed:
            digests[name] = {rank[name]["digest"] for rank in ranks}
            result = ranks[0][name]
            layouts[name] = gather_answers(plan, TokenLogProbs(result["log_prob"], result["is_greedy"]))
    hflm, exact = (_hflm_answers(model, root, harness, double=double) for double in (False, True))
    yield Scored(plan, harness, layouts, digests, hflm, exact)


@pytest.mark.parametrize("name", NAMES)
def test_every_request_is_answered_as_by_hflm(name: str, scored: Scored) -> None:
    got = scored.layouts[name]
    assert len(scored.digests[name]) == 1, "every rank has the same bits"
    assert np.abs(got.log_likelihood_R - scored.hflm.log_likelihood_R).max() <= 2e-4
    exact = scored.exact.log_likelihood_R
    assert (np.abs(got.log_likelihood_R - exact) / (2e-5 + 2e-7 * np.abs(exact))).max() <= 1
    assert got.is_greedy_R.tolist() == scored.exact.is_greedy_R.tolist() == scored.hflm.is_greedy_R.tolist()
    assert scored.exact.is_greedy_R.sum() >= 50, "continuations that are greedy are among them"


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_is_that_of_hflm(name: str, scored: Scored) -> None:
    got, expected = scored.metrics(scored.layouts[name]), scored.metrics(scored.exact)
    assert got.keys() == expected.keys()
    for (task, metric), value in expected.items():
        # fp32 log-likelihoods are uncertain by 2e-5 (above): exp of them, and means of it, by as much. A margin is the
        # difference of two such probabilities, which may nearly cancel; both are part of the total.
        relative = 2e-5 if _is_continuous(metric) else 1e-6
        absolute = relative * expected[task, "total_prob"] if metric == "margin" else 1e-12
        assert got[task, metric] == pytest.approx(value, rel=relative, abs=absolute), (task, metric)


def test_the_suite_is_what_was_promised(scored: Scored) -> None:
    items = {task.name: task.num_items for task in scored.plan.tasks}
    assert sum(n for name, n in items.items() if name.startswith("ceval")) >= ITEMS
    assert sum(n for name, n in items.items() if name.startswith("mmlu")) >= ITEMS
    several = {name: n for name, n in items.items() if not name.startswith(("ceval", "mmlu", "cmmlu", "greedy"))}
    assert len(several) >= 10 and min(several.values()) >= ITEMS - 1, several


def _is_continuous(metric: str) -> bool:
    return not metric.startswith(("acc", "exact_match"))


def _tokenizer(root: Path) -> Tokenizer:
    import gzip

    source = eval_source()
    assert source is not None
    lines = []
    for file in ("hellaswag.val", "boolq.val", "cmmlu.test", "mmlu.test"):
        with gzip.open(source / f"{file}.jsonl.gz", "rt", encoding="utf-8") as stream:
            items = [json.loads(line) for _, line in zip(range(2000), stream, strict=False)]
        lines += [" ".join([str(i.get("context", i.get("question", ""))), *map(str, i["choices"])]) for i in items]
    return train_tokenizer(lines, root / "tokenizer.model", vocab_size=VOCAB, character_coverage=0.98)


def _model(folder: Path) -> Any:
    """A random LlamaForCausalLM, far from uniform, written as a Hugging Face folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = ModelSpec.from_config(model_config(), VOCAB).config_json(sequence_length=LENGTH)
    torch.manual_seed(7)
    model = LlamaForCausalLM(LlamaConfig(**{**settings, "initializer_range": 0.15})).eval()
    model.save_pretrained(folder)
    return model


def _write_greedy_task(folder: Path, model: Any, tokenizer: Tokenizer) -> None:
    """Items whose answer is what the model says next, so that true greedy flags are among those compared."""
    from tests.unit.probes.conftest import write_task

    items, start = [], 3
    while len(items) < 60:
        start += 1
        context = [(start * 37 + j * j * 11) % (VOCAB - 300) + 290 for j in range(12)]
        text = tokenizer.decode(context)
        ids = [tokenizer.bos_id, *tokenizer.encode(text)]
        with torch.no_grad():
            following = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        answer = tokenizer.decode([*ids[1:], following])[len(text) :]
        if answer and tokenizer.encode(text + answer) == [*ids[1:], following]:
            items.append({"text": text, "answer": answer})
    definition = {"output_type": "loglikelihood", "doc_to_text": "{{text}}", "doc_to_target": "{{answer}}"}
    metrics = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    write_task(folder, "greedy", items, {**definition, "target_delimiter": "", "metric_list": metrics})


def _hflm_answers(model: Any, root: Path, harness: Harness, *, double: bool) -> Answers:
    from lm_eval.models.huggingface import HFLM

    oracle = HFLM(
        pretrained=model.double() if double else model.float(),
        tokenizer=hf_tokenizer(root / "tokenizer.model", add_bos=True),
        batch_size=16,
        max_length=LENGTH,
        add_bos_token=True,
        logits_cache=False,
    )
    instances = [instance for task in harness.tasks for instance in task.task.instances]
    answers = oracle.loglikelihood(instances, disable_tqdm=True)
    return Answers(np.array([value for value, _ in answers]), np.array([greedy for _, greedy in answers]))
