import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.errors import ProbeError
from probes.dynamics.load import PUBLISHED, load_curves, read_runs_file
from probes.dynamics.read_json import columns_of
from probes.dynamics.read_run import LEARNING_RATE, TRAIN_LOSS, read_run_curves, validation_loss
from probes.dynamics.table import LOSS_DOMAIN, RunFacts, Series, TaskCurve
from probes.store import load_measurements
from tests.support.synthetic_run import CHANCE, TOKENS_PER_STEP, measurement, write_synthetic_run

PIQA = Series("piqa", "acc", 0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_synthetic_run(tmp_path / "runs" / "demo")


def found(path: Path, series: Series = PIQA) -> TaskCurve:
    curve = read_run_curves(path).curves
    return next(one for one in curve if one.series == series)


def rewrite(path: Path, change: Any) -> None:
    path.write_text(change(path.read_text()))


# A run directory


def test_every_measurement_of_a_run_is_in_its_curves(run: Path) -> None:
    expected = {
        (row.domain, row.task, row.metric, row.num_fewshot, row.plan_hash, row.step): (
            row.tokens,
            row.value,
            row.stderr,
        )
        for row in load_measurements(run / "probes.jsonl")
        if row.task != "mean"
    }
    curves = [curve for curve in read_run_curves(run).curves if curve.domain != LOSS_DOMAIN]
    rows = {
        (curve.domain, curve.task, curve.metric, curve.num_fewshot, curve.plan, int(step)): (tokens, value, error)
        for curve in curves
        for step, tokens, value, error in zip(curve.step_C, curve.tokens_C, curve.value_C, curve.stderr_C, strict=True)
    }
    assert rows == expected
    assert {curve.task: curve.chance for curve in curves if curve.metric == "acc"} == CHANCE | {"lambada": 0.0}


def test_a_single_answer_that_the_plan_counted_no_choices_of_is_never_guessed(run: Path) -> None:
    record = run / "probes.jsonl"
    record.write_text(record.read_text().replace('"lambada"', '"my_last_words"'))
    assert found(run, Series("my_last_words", "acc", 0)).chance == 0.0
    (run / "events.jsonl").unlink()  # no plan tells it, and nobody knows the name
    assert np.isnan(found(run, Series("my_last_words", "acc", 0)).chance)


def test_configuration_and_events_tell_what_a_run_is(run: Path) -> None:
    facts = read_run_curves(run).facts
    assert facts.name == "demo" and facts.parameters == 11_010_048
    assert facts.total_tokens == 400 * 32 * 512
    assert facts.flops_per_token == pytest.approx(6 * 11e6)


@pytest.mark.parametrize(
    ("train", "tokens"),
    [
        ("{steps: null, tokens: 5000000}", 5_000_000.0),
        ("{steps: 10, tokens: null, global_batch_size: 4, sequence_length: 8}", 320.0),
        ("{steps: 10}", None),
        (
            "{steps: 4, micro_batch_size: 2, global_batch_size: 8, sequence_length: 16,"
            " batch_ramp: [{until: 2 steps, global_batch_size: 4}]}",
            (2 * 4 + 2 * 8) * 16.0,
        ),
    ],
)
def test_the_tokens_a_run_was_to_see_are_those_of_its_steps(run: Path, train: str, tokens: float | None) -> None:
    (run / "config.yaml").write_text(f"run: {{name: x}}\ntrain: {train}\n")
    assert read_run_curves(run).facts.total_tokens == tokens


def test_runs_on_the_same_data_are_of_one_family_unless_their_names_tell_another(run: Path) -> None:
    def family(text: str) -> str:
        (run / "config.yaml").write_text(text)
        return read_run_curves(run).facts.family

    assert family("run: {name: mine-70m}\ndata: {sources: {web: {weight: 1}}}\n") == "mine"
    first = family("run: {name: small}\ndata: {sources: {web: {weight: 1}}}\n")
    assert first == family("run: {name: large}\ndata: {sources: {web: {weight: 1}}}\nmodel: {num_layers: 9}\n")
    assert first != family("run: {name: large}\ndata: {sources: {web: {weight: 2}}}\n")
    assert family("run: {name: plain}\n") == "plain"


def test_training_loss_is_the_mean_of_the_rows_before_a_checkpoint_and_of_none_after(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    curve = found(run, TRAIN_LOSS)
    for step, value, error in zip(curve.step_C.tolist(), curve.value_C, curve.stderr_C, strict=True):
        inside = [losses[other] for other in losses if step * 0.95 < other <= step]
        assert value == pytest.approx(np.mean(inside))
        if len(inside) > 1:
            assert error == pytest.approx(np.std(inside, ddof=1) / math.sqrt(len(inside)), rel=1e-6)
    assert curve.domain == LOSS_DOMAIN and curve.lower_is_better
    assert curve.step_C.tolist() == [1, 2, 4, 8, 16, 32, 64, 128, 256, 400], "no loss before the first step"


def test_learning_rate_and_validation_losses_are_as_logged(run: Path) -> None:
    rows = {row["step"]: row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}
    rate = found(run, LEARNING_RATE)
    assert rate.value_C.tolist() == [rows[step]["train/learning_rate"] for step in rate.step_C.tolist()]
    loss = found(run, validation_loss("stories"))
    assert loss.step_C[0] == 0 and loss.value_C.tolist() == [
        rows[step]["validation/stories/loss"] for step in loss.step_C.tolist()
    ]


def test_a_run_without_probes_has_its_losses(run: Path) -> None:
    (run / "probes.jsonl").unlink()
    curves = read_run_curves(run).curves
    assert {curve.domain for curve in curves} == {LOSS_DOMAIN}
    assert len(found(run, TRAIN_LOSS)) == 10


def test_probes_alone_are_a_run_named_by_its_folder(run: Path) -> None:
    for name in ("config.yaml", "metrics.jsonl", "events.jsonl"):
        (run / name).unlink()
    table = load_curves([run])
    assert list(table.runs) == ["demo"] and table.runs["demo"].parameters is None
    assert table.get("demo", PIQA).chance == 0.5  # type: ignore[union-attr]


def test_a_step_measured_twice_counts_once_the_later(run: Path) -> None:
    row = measurement(400, "commonsense", "piqa", "acc", 0.125, None).to_json()
    with (run / "probes.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    curve = found(run)
    assert curve.step_C.tolist().count(400) == 1
    assert curve.value_C[-1] == 0.125 and math.isnan(curve.stderr_C[-1])


def test_a_torn_last_line_is_passed_over_and_a_whole_one_without_its_end_is_not(run: Path) -> None:
    whole = found(run)
    row = json.dumps(measurement(401, "commonsense", "piqa", "acc", 0.125, None).to_json())
    path = run / "probes.jsonl"
    text = path.read_text()
    path.write_text(text + row[: len(row) // 2])
    assert found(run).value_C.tolist() == whole.value_C.tolist()
    path.write_text(text + row)
    assert found(run).value_C.tolist() == [*whole.value_C.tolist(), 0.125]


@pytest.mark.parametrize("damage", ['{"step": 3, "tok', "[1]", "word"])
def test_a_damaged_line_before_the_end_is_named(run: Path, damage: str) -> None:
    rewrite(run / "probes.jsonl", lambda text: text.replace("\n", f"\n{damage}\n", 3).replace(f"{damage}\n", "", 2))
    with pytest.raises(ProbeError, match=r"probes\.jsonl, line 4"):
        read_run_curves(run)


def test_nan_and_other_odd_values_take_the_slow_way_to_the_same_table(run: Path) -> None:
    expected = found(run)
    odd = measurement(300, "commonsense", "piqa", "acc", math.nan, math.nan).to_json()
    strange = [
        odd,
        odd | {"value": "high"},
        odd | {"value": None, "stderr": True},
        {"unrelated": [1]},
        odd | {"task": 7},
    ]
    with (run / "probes.jsonl").open("a") as file:
        file.write("\n" + "".join(json.dumps(row) + "\n" for row in strange))
    curve = found(run)
    np.testing.assert_array_equal(curve.value_C, expected.value_C)
    np.testing.assert_array_equal(curve.stderr_C, expected.stderr_C)


def test_arrow_and_python_read_the_same_columns() -> None:
    lines = [{"a": 1, "t": "x"}, {"a": 2.5}, {"t": "y", "a": None, "more": {"deep": [1]}}, {"a": -1e300, "t": "x"}]
    plain = "".join(json.dumps(line) + "\n" for line in lines).encode()
    fast = columns_of(plain, Path("x"), numbers=["a"], texts=["t"])
    slow = columns_of(plain + b'{"b": NaN}\n', Path("x"), numbers=["a"], texts=["t"])
    np.testing.assert_array_equal(slow["a"], [*fast["a"], math.nan])
    assert slow["t"].to_pylist() == [*fast["t"].to_pylist(), None]
    assert len(columns_of(b"\n", Path("x"), numbers=["a"])["a"]) == 0


# Many


def test_runs_of_one_name_get_their_directory_s_name(run: Path) -> None:
    other = write_synthetic_run(run.with_name("again"), steps=20)
    table = load_curves([run, other, run / ".." / "demo"])
    assert list(table.runs) == ["demo [demo]", "demo [again]"]
    assert {curve.run for curve in table} == set(table.runs)


def test_names_that_still_clash_are_refused_with_the_remedy(run: Path, tmp_path: Path) -> None:
    twin = write_synthetic_run(tmp_path / "elsewhere" / "demo", steps=20)
    with pytest.raises(ProbeError, match=r"demo \[demo\] is in .*runs/demo and in .*elsewhere/demo.*rename"):
        load_curves([run, twin])
    scores = tmp_path / "scores.csv"
    scores.write_text("run,tokens,task,metric,value\ndemo,1,piqa,acc,.5\n")
    with pytest.raises(ProbeError, match="The run demo is in .*rename it in the column run"):
        load_curves([run, scores])


def test_tables_and_runs_are_merged_and_facts_of_a_file_are_stronger(run: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores.csv"
    scores.write_text("run,step,task,metric,value\nx-70m,5,piqa,acc,.5\ny,5,piqa,acc,.5\n")
    (tmp_path / "runs.csv").write_text("\ufeffrun,parameters,tokens_per_step,family\ndemo,1_000,,mine\ny,2e9,7,\n")
    told = read_runs_file(tmp_path / "runs.csv")
    table = load_curves([run, scores], tokens_per_step=10, facts=told.facts, tokens_per_step_of=told.tokens_per_step)
    assert table.runs["demo"].parameters == 1000 and table.runs["demo"].family == "mine"
    assert table.runs["demo"].total_tokens == 400 * TOKENS_PER_STEP
    assert table.runs["x-70m"] == RunFacts(name="x-70m", family="x", parameters=70e6)
    assert table.runs["y"].parameters == 2e9
    assert [float(curve.tokens_C[-1]) for curve in table if curve.run in ("x-70m", "y")] == [50.0, 35.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,parameters\nx,1\n", "unknown column"),
        ("parameters\n1\n", "lacks the column run"),
        ("run,parameters\nx,1\nx,2\n", "names x twice"),
        ("run,parameters\nx,many\n", "line 2: parameters=many is not a number above 0"),
        ("run,total_tokens\nx,-5\n", "not a number above 0"),
    ],
)
def test_a_file_of_facts_that_is_wrong_is_explained(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(ProbeError, match=message):
        read_runs_file(tmp_path / "runs.csv")


def test_published_curves_are_named_as_paths_are() -> None:
    table = load_curves(["published:pythia", "published:pythia-deduped", "published:olmo-ladder"])
    assert len(table.runs) == 8 + 8 + 24
    assert {series.num_fewshot for series in table.series()} >= {0, 5}
    with pytest.raises(ProbeError, match=", ".join(PUBLISHED)):
        load_curves(["published:llama"])


def test_what_is_no_source_of_scores_is_explained(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="does not exist. Give a run directory"):
        load_curves([tmp_path / "nothing"])
    with pytest.raises(ProbeError, match=r"holds runs: demo\. Give them"):
        load_curves([run.parent])
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ProbeError, match="no table of scores"):
        load_curves([tmp_path / "notes.txt"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProbeError, match="holds neither a run .* nor results of lm-eval"):
        load_curves([tmp_path / "empty"])


# The fast way


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def measurements(count: int, **changes: Any) -> list[dict[str, Any]]:
    noise = np.random.default_rng(0)
    return [
        measurement(step, "commonsense", f"task-{step % 7}", "acc", float(noise.random()), None).to_json() | changes
        for step in range(count)
    ]


ORDER = list(measurement(0, "", "", "", 0.0, None).to_json())
WANTED = {"numbers": ["step", "tokens", "value", "seconds"], "texts": ["run", "task", "plan_hash"]}


@pytest.mark.parametrize(
    "rows",
    [
        measurements(600),
        measurements(5),
        measurements(600, task='a, b "quoted" \\ ü\n'),
        measurements(600, plan_hash="a\\u00fcü", run="ü"),
        [row | {"value": None} if row["step"] == 400 else row for row in measurements(600)],
        [row | {"value": math.nan} if row["step"] == 3 else row for row in measurements(600)],
        [row | {"value": True} if row["step"] == 3 else row for row in measurements(20)],
        [row | {"task": None} if row["step"] == 3 else row for row in measurements(20)],
        [dict(reversed(row.items())) if row["step"] == 7 else row for row in measurements(600)],
        [{"step": 3}, *measurements(20)],
    ],
    ids=["many", "few", "commas", "escapes", "null", "nan", "flag", "no text", "other order", "fields missing"],
)
def test_cut_at_commas_or_not_the_columns_are_the_same(rows: list[dict[str, Any]]) -> None:
    content = lines(rows)
    found = columns_of(content, Path("x"), order=ORDER, **WANTED)
    expected = columns_of(content, Path("x"), **WANTED)
    for name in WANTED["numbers"]:
        np.testing.assert_array_equal(found[name], expected[name])
    for name in WANTED["texts"]:
        assert found[name].to_pylist() == expected[name].to_pylist()


@pytest.mark.parametrize("change", [(b'{"run"', b'x{"run"'), (b"6.4}", b"6.4"), (b'"step": 9,', b'"step": ,')])
def test_a_damaged_line_is_found_on_the_fast_way_too(change: tuple[bytes, bytes]) -> None:
    *before, last = lines(measurements(10)).splitlines(keepends=True)
    content = b"".join([*before, last.replace(*change), *before])
    with pytest.raises(ProbeError, match="x, line 10, is not JSON"):
        columns_of(content, Path("x"), order=ORDER, **WANTED)


def test_a_run_as_it_is_written_takes_the_fast_way(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = found(run)
    monkeypatch.setattr("pyarrow.json.read_json", lambda *_, **__: pytest.fail("the slow way"))
    (run / "metrics.jsonl").unlink()
    np.testing.assert_array_equal(found(run).value_C, expected.value_C)
