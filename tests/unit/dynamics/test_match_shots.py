"""A table that does not say its number of examples, beside others that do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pretrain.errors import ProbeError
from probes.dynamics.match_shots import match_shots
from probes.dynamics.references import read_references
from probes.dynamics.state import assess
from probes.dynamics.table import CurveTable, Series
from tests.support.curve_family import SIZES, STEPS, family, run_of, write_csv

RUNS = [run_of(size) for size in SIZES[:4]]
RUN, OTHERS = RUNS[3], RUNS[:3]


@pytest.fixture(scope="module")
def whole() -> CurveTable:
    return family(sizes=SIZES[:4], steps=STEPS[1::2])


def with_shots(table: CurveTable, shots: int) -> CurveTable:
    return CurveTable(table.runs.values(), [replace(curve, num_fewshot=shots) for curve in table])


def test_a_table_without_shots_is_matched_with_references_of_one_number_and_it_is_said(whole, tmp_path):
    mine, others = with_shots(whole.select(runs=[RUN]), -1), with_shots(whole.select(runs=OTHERS), 5)
    read = read_references(mine, [str(write_csv(others, tmp_path / "others.csv"))])
    assert read.names == OTHERS
    (note,) = read.notes
    assert note.startswith(f"{RUN} does not say how many examples were in its prompts: taken as 5-shot, as in ")
    told = read_references(with_shots(mine, 5), [str(tmp_path / "others.csv")])
    assert told.notes == ()
    # As text: a level that is not known (nan) equals no other.
    assert repr(assess(read.table, RUN, references=OTHERS)) == repr(assess(told.table, RUN, references=OTHERS))


def test_references_without_shots_are_taken_as_the_run_that_is_judged(whole, tmp_path):
    mine, others = with_shots(whole.select(runs=[RUN]), 0), with_shots(whole.select(runs=OTHERS), -1)
    read = read_references(mine, [str(write_csv(others, tmp_path / "others.csv"))])
    assert {curve.num_fewshot for curve in read.table if curve.metric == "acc"} == {0}
    assert len(read.notes) == len(OTHERS)


def test_of_several_numbers_none_is_taken_and_the_column_is_asked_for(whole, tmp_path):
    mine = with_shots(whole.select(runs=[RUN]), -1)
    both = [*with_shots(whole.select(runs=OTHERS), 0), *with_shots(whole.select(runs=OTHERS), 5)]
    path = write_csv(CurveTable(whole.select(runs=OTHERS).runs.values(), both), tmp_path / "others.csv")
    with pytest.raises(ProbeError, match=rf"{RUN} does not say .* with 0 and 5. Add a column shots to its table"):
        read_references(mine, [str(path)])


def test_runs_that_say_it_and_losses_stay_as_they_are(whole):
    table = match_shots(CurveTable(whole.runs.values(), [*whole.select(runs=OTHERS), *whole.select(runs=[RUN])]))
    assert table.notes == () and list(table) == [*whole.select(runs=OTHERS), *whole.select(runs=[RUN])]


def test_runs_side_by_side_are_matched_where_that_is_clear_and_left_with_a_note_where_not(whole):
    mine = with_shots(whole.select(runs=[RUN]), -1)
    alpha = Series("alpha", "acc")
    others = [
        replace(curve, num_fewshot=shots)
        for curve in whole.select(runs=OTHERS)
        for shots in ((0, 5) if curve.task == alpha.task else (0,))
    ]
    table = match_shots(CurveTable(whole.runs.values(), [*mine, *others]))
    assert table.get(RUN, alpha) is not None and table.get(RUN, Series("beta", "acc", 0)) is not None
    assert any("alpha (acc) with 0 and 5" in note and "not compared" in note for note in table.notes)
