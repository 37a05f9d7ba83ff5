"""Files of one row per score in the forms in which people keep them; each holds the same table."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from pretrain.errors import ProbeError
from probes.dynamics.load import load_curves
from probes.dynamics.table import CurveTable, Series

TEXT = """run,step,tokens,task,metric,value,stderr,shots
tiny-70m,10,1000,piqa,acc,0.5,,0
tiny-70m,20,2000,piqa,acc,0.625,0.01,0
tiny-70m,10,1000,gsm8k,"exact_match,strict-match",0.125,0.01,8
"""
_PIQA = {"run": "tiny-70m", "task": "piqa", "metric": "acc", "shots": 0}
_GSM8K = {"run": "tiny-70m", "task": "gsm8k", "metric": "exact_match,strict-match", "shots": 8}
ROWS: list[dict[str, object]] = [
    {**_PIQA, "step": 10, "tokens": 1000, "value": 0.5, "stderr": None},
    {**_PIQA, "step": 20, "tokens": 2000, "value": 0.625, "stderr": 0.01},
    {**_GSM8K, "step": 10, "tokens": 1000, "value": 0.125, "stderr": 0.01},
]
SEMICOLONS = TEXT.replace('"exact_match,strict-match"', "exact_match;strict-match").replace(",", ";")
SEMICOLONS = SEMICOLONS.replace("exact_match;strict-match", "exact_match,strict-match")
GERMAN = SEMICOLONS.replace(";0.", ";0,")
TWO_NAMES = TEXT.replace("run,", "run,model,").replace("tiny-70m,", "tiny-70m,other,")
NOTED = TEXT.replace("shots\n", "shots,note\n").replace("0\n", "0,x\n").replace("8\n", "8,x\n")
PANDAS = "\n".join(f"{'' if place == 0 else place - 1},{line}" for place, line in enumerate(TEXT.splitlines())) + "\n"
LM_EVAL = (
    TEXT.replace(",acc,", ',"acc,none",')
    .replace("run,", "model_name,")
    .replace("\ntiny", "\n tiny")
    .replace("stderr", "std_err")
)
FILTERS = """model,Tasks,Filter,n-shot,Metric,Value,Stderr,step,tokens
tiny-70m,piqa,none,0,acc,0.5,N/A,10,1000
tiny-70m,piqa,none,0,acc,0.625,0.01,20,2000
tiny-70m,gsm8k,strict-match,8,exact_match,0.125,0.01,10,1000
"""
STDERR_ROWS = """run,step,tokens,task,metric,value,shots
tiny-70m,10,1000,piqa,"acc,none",0.5,0
tiny-70m,20,2000,piqa,"acc_stderr,none",0.01,0
tiny-70m,20,2000,piqa,"acc,none",0.625,0
tiny-70m,10,1000,gsm8k,"exact_match,strict-match",0.125,8
tiny-70m,10,1000,gsm8k,"exact_match_stderr,strict-match",0.01,8
"""


def json_lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read(path: Path, content: str | bytes) -> CurveTable:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_curves([path])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", TEXT, ""),
        ("a.CSV", TEXT, ""),
        ("a.csv", "\ufeff" + TEXT, ""),
        ("a.csv", TEXT.replace("\n", "\r\n"), ""),
        ("a.csv", SEMICOLONS, "columns are separated by semicolons."),
        ("a.csv", GERMAN, "columns are separated by semicolons, numbers have decimal commas (as 0,5)."),
        ("a.csv", "\ufeff" + GERMAN.replace("\n", "\r\n"), "decimal commas"),
        ("a.tsv", SEMICOLONS.replace(";", "\t"), "columns are separated by tabs."),
        ("a.csv", SEMICOLONS.replace(";", "\t"), "columns are separated by tabs."),
        ("a.tsv", GERMAN.replace(";", "\t"), "decimal commas"),
        ("a.jsonl", json_lines(ROWS), ""),
        ("a.ndjson", "\n" + json_lines(ROWS), ""),
        ("a.jsonl", json_lines([{**row, "extra": {"deep": [1]}} for row in ROWS]), ""),
        ("a.json", json.dumps(ROWS), ""),
        ("a.csv", PANDAS, ""),
        ("a.csv", LM_EVAL, ""),
        ("a.csv", FILTERS, ""),
        ("a.csv", STDERR_ROWS, ""),
        ("a.csv", TWO_NAMES, "columns model are not known"),
        ("a.csv", NOTED, "columns note"),
        ("a.csv", TEXT.replace("tokens", "tokens (K)").replace("000,", ","), ""),
        ("a.csv", TEXT.replace(",1000,", ",1K,").replace(",2000,", ",2_000,"), ""),
    ],
)  # fmt: skip
def test_the_same_scores_in_every_form_are_the_same_table(tmp_path: Path, name: str, content: str, said: str) -> None:
    table = read(tmp_path / name, content)
    assert {
        curve.series: (curve.run, curve.step_C.tolist(), curve.tokens_C.tolist(), curve.value_C.tolist())
        for curve in table
    } == {
        Series("piqa", "acc", 0): ("tiny-70m", [10, 20], [1000.0, 2000.0], [0.5, 0.625]),
        Series("gsm8k", "exact_match,strict-match", 8): ("tiny-70m", [10], [1000.0], [0.125]),
    }
    assert [curve.stderr_C[-1] for curve in table] == [0.01, 0.01]
    assert [curve.chance for curve in table] == [0.5, 0.0]
    assert said in " ".join(table.notes) and bool(said) == bool(table.notes)


@pytest.mark.parametrize(("ending", "packed"), [(".gz", gzip.compress), (".xz", lzma.compress), (".zst", None)])
@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_each_form_may_be_compressed(
    tmp_path: Path, kind: str, ending: str, packed: Callable[[bytes], bytes] | None
) -> None:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), sink)
    content = {
        ".csv": TEXT.encode(),
        ".tsv": SEMICOLONS.replace(";", "\t").encode(),
        ".jsonl": json_lines(ROWS).encode(),
        ".json": json.dumps(ROWS).encode(),
        ".parquet": sink.getvalue().to_pybytes(),
    }[kind]
    compress = packed or (lambda plain: pa.compress(plain, codec="zstd", asbytes=True))
    assert {len(curve) for curve in read(tmp_path / f"a{kind}{ending}", compress(content))} == {1, 2}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", TEXT.encode("utf-16"), "is encoded as UTF-16. Save it as UTF-8"),
        ("a.csv", TEXT.replace("tiny", "größe").encode("latin-1"), "line 2, is not UTF-8 .byte 0xf6.*CSV UTF-8"),
        (
            "a.csv",
            gzip.compress(TEXT.encode()),
            "is no text but a .gz file by its first bytes. Let its name end in .gz",
        ),
        ("a.csv", b"PK\x03\x04....", "is no text but a .xlsx or .zip file"),
        ("a.csv.gz", TEXT.encode(), "a.csv.gz cannot be read as .gz"),
        ("a.csv", TEXT + "tiny-70m,10\n", "cannot be read as a table of scores: .*Expected 8 columns, got 2"),
        ("a.csv", TEXT.replace(",0.5,", ',"0,5",'), "line 2: value='0,5' is not a number.*separated by semicolons"),
        ("a.jsonl", json_lines(ROWS) + "{\n", "line 4, is not JSON.*Mend it"),
        ("a.jsonl", json_lines(ROWS) + "[1]\n", "line 4, holds list, not an object"),
        ("a.json", '{"rows": 1}', "nor results of lm-eval"),
        ("a.jsonl", json_lines(ROWS).replace("0.125", "Infinity"), "line 3: value=inf of gsm8k"),
        ("a.xlsx", b"PK", "a.xlsx is no folder and no table of scores"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(ProbeError, match=message):
        read(tmp_path / name, content)


def test_a_run_whose_name_is_a_number_keeps_its_zeros(tmp_path: Path) -> None:
    table = read(tmp_path / "a.csv", TEXT.replace("tiny-70m", "007"))
    assert list(table.runs) == ["007"]


def test_checkpoints_and_revisions_tell_steps_and_tokens(tmp_path: Path) -> None:
    text = (
        "model,revision,task,metric,value\nm-1b,step1000-tokens4B,piqa,acc,0.5\nm-1b,step2000-tokens8B,piqa,acc,0.6\n"
    )
    (curve,) = read(tmp_path / "a.csv", text)
    assert curve.step_C.tolist() == [1000, 2000] and curve.tokens_C.tolist() == [4e9, 8e9]
    with pytest.raises(ProbeError, match="line 3: checkpoint=final tells no step. Write it as one of step_1000"):
        read(tmp_path / "a.csv", text.replace("step2000-tokens8B", "final"))


def test_rows_without_tokens_take_them_from_their_steps_or_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(TEXT.replace("20,2000", "20,"))
    table = load_curves([tmp_path / "a.csv"], tokens_per_step=100)
    np.testing.assert_array_equal(table.curves[0].tokens_C, [1000, 2000])
    table = load_curves([tmp_path / "a.csv"])
    assert table.curves[0].tokens_C.tolist() == [1000] and "1 rows without tokens are left out" in table.notes[0]


def test_a_record_of_a_run_is_the_run(tmp_path: Path) -> None:
    from tests.support.synthetic_run import write_synthetic_run

    run = write_synthetic_run(tmp_path / "demo", steps=20)
    for name in ("probes.jsonl", "metrics.jsonl"):
        table = load_curves([run / name])
        assert table.runs == load_curves([run]).runs and len(table) == len(load_curves([run]))
