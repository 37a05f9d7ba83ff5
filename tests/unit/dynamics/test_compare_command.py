import csv
import json

import pytest

from probes.__main__ import main


def test_compare_prints_similarity_onsets_leads_and_agreement(tmp_path, capsys):
    similarity, onsets = tmp_path / "similarity.json", tmp_path / "onsets.csv"
    runs = [f"--run=pythia-{size}{data}" for size in ("410m", "1.4b") for data in ("", "-deduped")]
    words = ["compare", "published:pythia", "published:pythia-deduped", *runs, "--metric", "acc", "--draws", "20"]
    assert main([*words, "--output", str(similarity), "--onsets", str(onsets)]) == 0
    out = capsys.readouterr().out
    assert "The ranking has mean Kendall τ" in out and "that of two runs of one size" in out
    assert "pythia-410m: piqa (acc, 0-shot)" in out and "never: " in out
    assert "commonsense  knowledge  leads" in out
    rows = json.loads(similarity.read_text())
    assert rows[0]["verdict"] == "alike" and rows[0]["ceiling"] > rows[0]["similarity"]
    with onsets.open() as file:
        found = list(csv.DictReader(file))
    assert {row["onset"] for row in found} == {"at", "before", "never"}


def test_compare_aligns_by_a_loss_that_it_is_told(capsys):
    words = ["compare", "published:olmo-ladder", "--align", "loss", "--loss", "c4_en-validation:ce_loss"]
    runs = [f"--run={size}-1xC" for size in ("190M", "370M")]
    assert main([*words, *runs, "--metric", "bpb", "--draws", "5"]) == 0
    assert "aligned by loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "published:pythia", "--metric", "f1"], "No curve is left to compare"),
        (["compare", "published:pythia", "--draws", "1"], "2 draws or more"),
        (["compare", "published:olmo-ladder", "--align", "loss", "--loss", "pile:loss"], "names no series"),
    ],
)
def test_errors_name_the_remedy(words, message, capsys):
    assert main(words) == 1
    assert message in capsys.readouterr().err
