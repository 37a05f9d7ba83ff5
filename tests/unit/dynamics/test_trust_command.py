import csv

from probes.__main__ import main


def test_trust_prints_verdicts_what_to_watch_and_what_decays(capsys):
    assert main(["trust", "published:pythia", "--run", "pythia-70m", "--run", "pythia-1.4b"]) == 0
    small, _, large = capsys.readouterr().out.partition("\npythia-1.4b,")
    assert "pythia-70m, 300B tokens: 0 of 256 curves trusted" in small
    assert "lost part of what they had: sciq, arc_easy, lambada_openai (this speaks of the run)" in small
    assert "watch sciq" in large and "times its noise" in large and "decay:" not in large
    assert "hendrycksTest (57 parts)" in large and "of 57 parts trusted" in large


def test_trust_of_a_run_in_its_past_says_what_will_tell_something_soon(capsys):
    assert main(["trust", "published:pythia", "--run", "pythia-1b-bf16", "--at-tokens", "7e10"]) == 0
    assert "soon winogrande (acc, 0-shot): could be trusted from" in capsys.readouterr().out


def test_trust_writes_every_verdict_with_its_numbers(tmp_path, capsys):
    output = tmp_path / "trust.csv"
    assert main(["trust", "published:pythia", "--output", str(output)]) == 0
    assert "ordering consistency" in capsys.readouterr().out
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 * 256
    piqa = next(row for row in rows if (row["run"], row["task"], row["metric"]) == ("pythia-12b", "piqa", "acc"))
    assert piqa["trusted"] == "True" and float(piqa["decision_accuracy"]) == 1.0


def test_a_run_that_is_not_there_is_refused(capsys):
    assert main(["trust", "published:pythia", "--run", "pythia-3b"]) == 1
    assert "no such run" in capsys.readouterr().err
