import csv
import gzip
import lzma
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from pretrain.errors import ProbeError
from probes.dynamics.published import pythia
from probes.dynamics.table import RunFacts, Series
from probes.dynamics.tidy import family_in, from_arrow, ordered_groups, read_tidy, size_in, to_arrow

TEXT = """model,step,shots,task,metric,value,stderr
tiny-70m,20,0,piqa,acc,0.6,0.01
tiny-70m,10,0,piqa,acc,0.5,
tiny-1.4b,10,0,piqa,acc,0.7,0.02
tiny-70m,10,5,piqa,acc,0.55,0.01
"""


def write(path: Path, text: str = TEXT) -> Path:
    path.write_text(text)
    return path


def test_columns_of_other_names_are_understood_and_names_tell_size_and_family(tmp_path: Path) -> None:
    table = read_tidy(write(tmp_path / "scores.csv"), tokens_per_step=1000)
    curve = table.get("tiny-70m", Series("piqa", "acc", 0))
    assert curve is not None
    assert (curve.step_C.tolist(), curve.tokens_C.tolist(), curve.value_C.tolist()) == (
        [10, 20],
        [1e4, 2e4],
        [0.5, 0.6],
    )
    assert math.isnan(curve.stderr_C[0]) and curve.stderr_C[1] == 0.01
    assert (curve.domain, curve.chance) == ("commonsense", 0.5)
    assert table.runs["tiny-70m"].parameters == 70e6 and table.runs["tiny-1.4b"].parameters == 1.4e9
    assert {facts.family for facts in table.runs.values()} == {"tiny"}
    assert len(table) == 3


def test_tokens_of_a_step_may_differ_between_runs(tmp_path: Path) -> None:
    path = write(tmp_path / "scores.csv")
    table = read_tidy(path, tokens_per_step={"tiny-70m": 1.0, "tiny-1.4b": 2.0}.get)
    assert [curve.tokens_C[0] for curve in table.of_series(Series("piqa", "acc", 0))] == [10.0, 20.0]
    with pytest.raises(ProbeError, match=r"no column tokens.*tiny-1.4b.*--tokens-per-step"):
        read_tidy(path, tokens_per_step={"tiny-70m": 1.0}.get)
    with pytest.raises(ProbeError, match="--tokens-per-step"):
        read_tidy(path)


@pytest.mark.parametrize("suffix", [".csv.gz", ".csv.xz", ".parquet"])
def test_compressed_files_and_parquet_hold_the_same(tmp_path: Path, suffix: str) -> None:
    plain = read_tidy(write(tmp_path / "scores.csv"), tokens_per_step=10)
    path = tmp_path / f"scores{suffix}"
    if suffix == ".parquet":
        pa.parquet.write_table(to_arrow(plain), path)
    else:
        {".csv.gz": gzip, ".csv.xz": lzma}[suffix].open(path, "wt").write(TEXT)
    found = read_tidy(path, tokens_per_step=10)
    assert found.runs == plain.runs
    for curve in plain:
        other = found.get(curve.run, curve.series)
        assert other is not None
        for name in ("step_C", "tokens_C", "value_C", "stderr_C"):
            np.testing.assert_array_equal(getattr(other, name), getattr(curve, name))


def test_what_is_missing_or_no_number_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"lacks the column\(s\) metric, step or tokens; it has run, task, value"):
        read_tidy(write(tmp_path / "a.csv", "run,task,value\nx,piqa,0.5\n"))
    with pytest.raises(ProbeError, match="line 2: value=.high. is not a number. Numbers are wanted"):
        read_tidy(write(tmp_path / "b.csv", "run,task,metric,tokens,value\nx,piqa,acc,5,high\n"))
    with pytest.raises(ProbeError, match="cannot be read as a table"):
        read_tidy(write(tmp_path / "c.parquet", "no"))


def test_what_the_file_says_is_stronger_than_names_and_facts(tmp_path: Path) -> None:
    text = (
        "run,tokens,task,metric,value,domain,chance,family,parameters,total_tokens\n"
        "tiny-70m,5,quiz,acc,0.5,games,0.125,mine,123,50\n"
    )
    facts = {"tiny-70m": RunFacts(name="tiny-70m", family="theirs", parameters=1.0, flops_per_token=9.0)}
    table = read_tidy(write(tmp_path / "scores.csv", text), facts=facts)
    assert table.runs["tiny-70m"] == RunFacts(
        name="tiny-70m", family="mine", parameters=123.0, total_tokens=50.0, flops_per_token=9.0
    )
    assert (table.curves[0].domain, table.curves[0].chance) == ("games", 0.125)
    assert table.curves[0].step_C.tolist() == [-1]


def test_means_of_domains_are_left_out(tmp_path: Path) -> None:
    text = "run,tokens,task,metric,value,domain\nx,1,mean,acc,.5,a\nx,1,mean,acc,.6,b\nx,1,piqa,acc,.7,a\n"
    table = read_tidy(write(tmp_path / "scores.csv", text))
    assert table.series() == [Series("piqa", "acc")]


def test_plans_are_curves_of_their_own(tmp_path: Path) -> None:
    text = "run,tokens,task,metric,value,plan\nx,1,piqa,acc,.5,old\nx,2,piqa,acc,.6,new\nx,3,piqa,acc,.7,new\n"
    table = read_tidy(write(tmp_path / "scores.csv", text))
    assert sorted((curve.plan, len(curve)) for curve in table) == [("new", 2), ("old", 1)]


def test_groups_are_those_of_a_dictionary_whatever_the_order_of_rows() -> None:
    noise = np.random.default_rng(0)
    keys = [noise.integers(-1, 4, 500), noise.integers(0, 3, 500)]
    tokens_R, value_R = noise.integers(0, 20, 500).astype(float), noise.normal(size=500)
    value_R[noise.integers(0, 500, 30)] = np.nan
    tokens_R[noise.integers(0, 500, 10)] = np.inf
    expected: dict[tuple[int, int], dict[float, float]] = {}
    for row in range(500):
        if np.isfinite(value_R[row]) and np.isfinite(tokens_R[row]):
            expected.setdefault((int(keys[0][row]), int(keys[1][row])), {})[tokens_R[row]] = value_R[row]
    order_R, bounds = ordered_groups(keys, tokens_R, value_R)
    found = {}
    for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
        rows = order_R[begin:end]
        assert len({(keys[0][row], keys[1][row]) for row in rows}) == 1
        assert (np.diff(tokens_R[rows]) > 0).all()
        found[(int(keys[0][rows[0]]), int(keys[1][rows[0]]))] = dict(zip(tokens_R[rows], value_R[rows], strict=True))
    assert found == expected
    nothing, ends = ordered_groups([np.zeros(0, np.int64)], np.zeros(0), np.zeros(0))
    assert len(nothing) == 0 and ends.tolist() == [0]


def test_a_written_table_reads_back_as_it_was() -> None:
    table = pythia(deduped=False, num_fewshot=5).select(runs=["pythia-70m", "pythia-12b"])
    back = from_arrow(to_arrow(table), facts=table.runs)
    assert back.runs == table.runs and len(back) == len(table)
    for curve in table:
        other = back.get(curve.run, curve.series)
        assert other is not None and other.domain == curve.domain
        np.testing.assert_array_equal(other.value_C, curve.value_C)
        np.testing.assert_array_equal(other.tokens_C, curve.tokens_C)


def test_a_written_table_can_be_read_by_others(tmp_path: Path) -> None:
    table = read_tidy(write(tmp_path / "scores.csv"), tokens_per_step=1000)
    pa.csv.write_csv(to_arrow(table), tmp_path / "out.csv")
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    first = next(row for row in rows if row["run"] == "tiny-1.4b")
    assert float(first["rescaled"]) == pytest.approx(0.4)
    assert float(first["flops"]) == pytest.approx(6 * 1.4e9 * 1e4)


@pytest.mark.parametrize(
    ("name", "size", "family"),
    [
        ("pythia-1.4b", 1.4e9, "pythia"),
        ("pythia-70m-deduped", 70e6, "pythia-deduped"),
        ("190M-5xC", 190e6, "5xC"),
        ("llama_7B", 7e9, "llama"),
        ("run2b2", None, "run2b2"),
        ("demo", None, "demo"),
    ],
)
def test_a_name_tells_its_size_if_it_stands_alone(name: str, size: float | None, family: str) -> None:
    assert size_in(name) == size
    assert family_in(name) == family
