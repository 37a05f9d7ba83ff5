"""Tables with a column for each score: W&B's history and charts, Fineline's own names there, and tables by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from pretrain.errors import ProbeError
from pretrain.track.names import PROBE_TOKENS, probe_name
from probes.dynamics.load import load_curves
from probes.dynamics.read_run import LEARNING_RATE, TRAIN_LOSS, read_run_curves, validation_loss
from probes.dynamics.table import LOSS_DOMAIN, Series
from probes.store import load_measurements
from tests.support.synthetic_run import write_synthetic_run

HISTORY = """Step,_timestamp,_runtime,train/loss,train/grad_norm,hellaswag/acc_norm,hellaswag/acc_norm_stderr,piqa/acc
1000,1700001000.0,3,2.4,0.1,0.30,0.01,
1500,1700001500.0,3,2.3,0.1,,,
2000,1700002000.0,3,2.2,0.1,0.38,0.01,0.61
"""
CHART = """"Step","mine-1b - hellaswag/acc_norm","mine-1b - hellaswag/acc_norm__MIN",\
"mine-1b - hellaswag/acc_norm__MAX","b - 2b - piqa/acc"
"1000","0.30","0.3","0.3",""
"2000","0.38","0.38","0.38","0.61"
"""


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_history_of_wandb_is_a_run_named_by_the_file(tmp_path: Path) -> None:
    table = load_curves([written(tmp_path / "mine-1.3b.csv", HISTORY)], tokens_per_step=2e6)
    assert list(table.runs) == ["mine-1.3b"] and table.runs["mine-1.3b"].parameters == 1.3e9
    curve = table.get("mine-1.3b", Series("hellaswag", "acc_norm"))
    assert curve is not None and curve.domain == "commonsense"
    assert (curve.step_C.tolist(), curve.tokens_C.tolist()) == ([1000, 2000], [2e9, 4e9])
    assert (curve.value_C.tolist(), curve.stderr_C.tolist()) == ([0.30, 0.38], [0.01, 0.01])
    assert table.get("mine-1.3b", Series("piqa", "acc")).step_C.tolist() == [2000]  # type: ignore[union-attr]
    loss = table.get("mine-1.3b", TRAIN_LOSS)
    assert loss is not None and loss.domain == LOSS_DOMAIN and loss.value_C.tolist() == [2.4, 2.2]
    (note,) = table.notes
    assert "taken are train/loss, hellaswag/acc_norm, hellaswag/acc_norm_stderr, piqa/acc" in note
    assert "left out are _timestamp, _runtime, train/grad_norm." in note


def test_a_chart_of_wandb_names_its_runs_and_its_ranges_are_skipped(tmp_path: Path) -> None:
    table = load_curves([written(tmp_path / "export.csv", CHART)], tokens_per_step=10)
    assert {curve.run: (curve.task, curve.value_C.tolist()) for curve in table} == {
        "mine-1b": ("hellaswag", [0.30, 0.38]),
        "b - 2b": ("piqa", [0.61]),
    }
    assert "2 columns __MIN and __MAX are skipped" in table.notes[0]


def test_an_export_without_steps_or_tokens_is_refused_with_what_to_choose(tmp_path: Path) -> None:
    path = written(tmp_path / "export.csv", CHART.replace('"Step"', '"Relative Time (Process)"'))
    with pytest.raises(ProbeError, match="neither steps nor tokens. Export it with Step or tokens as the x axis"):
        load_curves([path], tokens_per_step=10)


def history_of(run: Path) -> pa.Table:
    """The rows that the W&B sink logs for a run directory; scores of a save come a row late."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [{("_step" if name == "step" else name): value for name, value in row.items()} for row in rows]
    for one in load_measurements(run / "probes.jsonl"):
        row = rows[one.step + 1 if one.step == 16 else one.step]
        row |= {PROBE_TOKENS: one.tokens, probe_name(one.domain, one.task, one.metric): one.value}
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def test_an_export_of_our_own_run_has_the_curves_of_the_run(tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path / "demo")
    pa.csv.write_csv(history_of(run), tmp_path / "demo.csv")
    expected = {curve.series: curve for curve in read_run_curves(run).curves}
    table = load_curves([tmp_path / "demo.csv"])
    found = {curve.series: curve for curve in table}
    assert {one.task for one in found} == {one.task for one in expected}
    assert {TRAIN_LOSS, LEARNING_RATE, validation_loss("stories")} <= found.keys()
    for series, curve in expected.items():
        other = found.get(series) or found[Series(series.task, series.metric)]
        assert other.domain == curve.domain, series
        np.testing.assert_allclose(other.value_C, curve.value_C, rtol=1e-9, err_msg=str(series))
        np.testing.assert_array_equal(other.step_C, curve.step_C)
    assert "perf/tokens_per_second" in table.notes[0].split("left out are")[1]


@pytest.mark.parametrize(
    ("header", "series"),
    [
        ("probe-commonsense/piqa@5shot/acc", Series("piqa", "acc", 5)),
        ("validation/web/loss", Series("validation/web", "loss")),
        ("eval/piqa/acc", Series("piqa", "acc")),
        ("eval_5shot/piqa/acc_norm,none", Series("piqa", "acc_norm", 5)),
        ("eval/downstream/piqa_len_norm", Series("piqa", "len_norm")),
        ("hellaswag_acc_norm", Series("hellaswag", "acc_norm")),
        ("gsm8k/exact_match,strict-match", Series("gsm8k", "exact_match,strict-match")),
        ("wikitext/word_perplexity", Series("wikitext", "word_perplexity")),
        ("val/loss", Series("validation", "loss")),
        ("train_loss", Series("train", "loss")),
        ("HellaSwag", Series("hellaswag", "acc")),
        ("perf/mfu", None),
        ("train/acc", None),
        ("system/gpu.0.temp", None),
    ],
)
def test_names_of_columns_tell_task_metric_and_examples(tmp_path: Path, header: str, series: Series | None) -> None:
    path = written(tmp_path / "x.csv", f'tokens,sciq/acc,"{header}"\n1000,0.5,0.25\n')
    found = {one for one in load_curves([path]).series() if one != Series("sciq", "acc")}
    assert found == ({series} if series else set())


def test_a_column_for_each_metric_beside_a_column_task(tmp_path: Path) -> None:
    text = (
        "Model,Tokens (B),Task,n-shot,acc,acc_stderr,acc_norm\nm-1b,4,piqa,5,0.6,0.01,0.62\nm-1b,8,piqa,5,0.65,0.01,\n"
    )
    table = load_curves([written(tmp_path / "x.csv", text)])
    curve = table.get("m-1b", Series("piqa", "acc", 5))
    assert curve is not None and curve.tokens_C.tolist() == [4e9, 8e9] and curve.stderr_C.tolist() == [0.01, 0.01]
    assert table.get("m-1b", Series("piqa", "acc_norm", 5)).value_C.tolist() == [0.62]  # type: ignore[union-attr]


def test_a_table_of_a_model_card_is_read_by_the_names_of_its_rows(tmp_path: Path) -> None:
    """TinyLlama's form: tasks as columns in percent, step and tokens in the model's name."""
    text = (
        "Model|Pretrain Tokens|HellaSwag|WinoGrande|boolq\n"
        "TinyLlama-1.1B-intermediate-step-50K-104b|103B|43.50|53.28|59.66\n"
        "TinyLlama-1.1B-intermediate-step-240k-503b|503B|49.56|55.80|56.91\n"
    )
    table = load_curves([written(tmp_path / "card.csv", text)])
    assert set(table.runs) == {"TinyLlama-1.1B"}
    curve = table.get("TinyLlama-1.1B", Series("hellaswag", "acc"))
    assert curve is not None and curve.tokens_C.tolist() == [103e9, 503e9]
    np.testing.assert_allclose(curve.value_C, [0.4350, 0.4956])
    said = " ".join(table.notes)
    assert "HellaSwag, WinoGrande, boolq: no metric is named, so the scores are taken as acc" in said
    assert "in percent" in said and "separated by bars" in said


def test_an_impossible_score_of_a_wide_table_is_named_by_line_and_column(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="line 3, column piqa/acc: value=-0.5 of piqa"):
        load_curves([written(tmp_path / "x.csv", "tokens,sciq/acc,piqa/acc\n1,0.5,0.5\n2,0.5,-0.5\n")])
