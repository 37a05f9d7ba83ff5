import numpy as np
import pytest

from probes.dynamics.chance import at_chance
from probes.dynamics.table import CurveTable, RunFacts, Series, curve_of
from probes.dynamics.trust import judge
from tests.support.curve_family import ABILITIES, LAWS, LOSS, SIZES, changed, family, run_of, with_values

RUNS = [run_of(size) for size in SIZES]
ALPHA, BETA = ABILITIES[0].series, ABILITIES[1].series


@pytest.fixture(scope="module")
def table():
    return family()


def guessing(table, *, runs, series=(BETA,), by=0.0, seed=0):
    """The table with these series guessed in these runs, `by` above chance."""
    random = np.random.default_rng(seed)

    def guess(curve):
        if curve.run not in runs or curve.series not in series:
            return curve
        return with_values(curve, curve.chance + by + 0.004 * random.normal(size=len(curve)))

    return changed(table, guess)


def subjects(count, *, runs=RUNS, seed=0, skew=0.0):
    """Curves of guessing on some hundred items: the items are the same at all checkpoints, so that luck lasts."""
    random = np.random.default_rng(seed)
    pattern = family(ABILITIES[:1], sizes=SIZES[: len(runs)])
    curves = []
    for run in runs:
        like = pattern.get(run, ALPHA)
        for number in range(count):
            lasting, drift = 0.03 * random.normal(), np.cumsum(0.006 * random.normal(size=len(like)))
            values = 0.25 + skew + lasting + drift + 0.012 * random.normal(size=len(like))
            curve = with_values(like, values)
            curves.append(
                type(curve)(**{**fields(curve), "task": f"mmlu_{number}", "stderr_C": np.full(len(like), 0.03)})
            )
    return CurveTable(pattern.runs.values(), curves)


def fields(curve):
    return {name: getattr(curve, name) for name in curve.__dataclass_fields__}


def test_curves_that_rise_above_chance_are_not_at_it_and_guessing_is(table):
    guessed = guessing(table, runs=RUNS)
    found = at_chance(guessed, [law.series for law in LAWS], references=RUNS[:3], run=RUNS[3])
    assert found == {BETA: "at chance in this run and its references: nothing can be said of it."}
    found = at_chance(guessed, [ALPHA, BETA], references=RUNS)
    assert found == {BETA: "at chance in every run that measured it: nothing can be said of it."}


def test_the_run_speaks_for_itself_and_two_references_for_it(table):
    refs, run = RUNS[:3], RUNS[3]
    only = {
        "the run": guessing(table, runs=refs),
        "two references": guessing(table, runs=[refs[0], run]),
        "one reference": guessing(table, runs=[*refs[:2], run]),
    }
    said = {who: BETA not in at_chance(known, [BETA], references=refs, run=run) for who, known in only.items()}
    assert said == {"the run": True, "two references": True, "one reference": False}


def test_a_single_reference_is_enough_where_there_is_no_other(table):
    known = guessing(table, runs=RUNS[1:])
    assert at_chance(known, [BETA], references=RUNS[:1], run=RUNS[1]) == {}
    assert at_chance(known, [BETA], references=RUNS[1:2], run=RUNS[2]).keys() == {BETA}


def test_without_references_a_run_has_only_itself(table):
    assert at_chance(table, [ALPHA], references=[], run=RUNS[0]) == {}
    assert at_chance(guessing(table, runs=RUNS), [BETA], references=[], run=RUNS[0]).keys() == {BETA}


def test_series_without_a_chance_are_never_at_it(table):
    random = np.random.default_rng(0)
    flat = changed(table, lambda c: with_values(c, 2 + 0.01 * random.normal(size=len(c))) if c.task == LOSS.task else c)
    assert at_chance(flat, [LOSS.series], references=RUNS[:2], run=RUNS[2]) == {}
    assert at_chance(flat, [LOSS.series], references=[], run=RUNS[2]) == {}


def test_scores_above_chance_that_never_rose_are_refused_with_that_reason(table):
    known = guessing(table, runs=RUNS, by=0.15)
    found = at_chance(known, [BETA], references=RUNS[:3], run=RUNS[3])
    assert found[BETA].startswith("above chance, but without a rise that is more than noise, in this run")


def sparse(value, *, stderr=np.nan, chance=0.25, count=1):
    """A run with three checkpoints of some tasks, of which the last is at this score."""
    curves = [
        curve_of(
            [(step, step * 1e8, score, stderr) for step, score in ((1_000, chance), (2_000, chance), (3_000, value))],
            run="run",
            series=Series(f"task_{number}", "acc", 0),
            domain="knowledge",
            chance=chance,
        )
        for number in range(count)
    ]
    return CurveTable([RunFacts(name="run", total_tokens=1e12)], curves)


def test_few_checkpoints_are_above_chance_if_the_latest_is_and_otherwise_refused_as_few():
    series = [Series("task_0", "acc", 0)]
    few = "at most 3 checkpoint(s) after the very first ones in this run"
    assert at_chance(sparse(0.35), series, references=[], run="run") == {}
    assert at_chance(sparse(0.26), series, references=[], run="run") == {
        series[0]: f"{few}, and the latest score is not above guessing."
    }
    # Of a hundred items a third right is luck.
    assert at_chance(sparse(0.32, stderr=0.045), series, references=[], run="run").keys() == set(series)
    assert at_chance(sparse(0.32, stderr=0.01), series, references=[], run="run") == {}


def test_of_many_tasks_with_few_checkpoints_the_luckiest_is_at_chance():
    many = [Series(f"task_{number}", "acc", 0) for number in range(57)]
    assert at_chance(sparse(0.28), many[:1], references=[], run="run") == {}
    assert at_chance(sparse(0.28, count=57), many, references=[], run="run").keys() == set(many)


def test_nobody_measured_it_and_it_is_refused():
    empty = CurveTable([RunFacts(name="run")], [])
    assert at_chance(empty, [ALPHA], references=[], run="run").keys() == {ALPHA}


def test_of_hundreds_of_guessed_curves_all_are_at_chance():
    known = subjects(57)
    series = [Series(f"mmlu_{number}", "acc", 0) for number in range(57)]
    assert at_chance(known, series, references=RUNS[:4], run=RUNS[4]).keys() == set(series)


def test_answers_that_are_not_evenly_spread_do_not_lift_a_subject_above_chance():
    # Five standard errors above a quarter from the start, and staying there.
    known = subjects(20, skew=0.15)
    series = [Series(f"mmlu_{number}", "acc", 0) for number in range(20)]
    found = at_chance(known, series, references=RUNS[:4], run=RUNS[4])
    assert len(found) == 20 and any(why.startswith("above chance, but without a rise") for why in found.values())


def test_one_true_ability_among_many_guessed_ones_is_found(table):
    known = subjects(57)
    both = CurveTable(known.runs.values(), [*known.curves, *(c for c in table if c.series == ALPHA)])
    assert ALPHA not in at_chance(both, [ALPHA], references=RUNS[:4], run=RUNS[4])


def without_chance(table):
    """The table as of tasks that nobody knows."""
    curves = [c if c.lower_is_better else type(c)(**{**fields(c), "chance": np.nan}) for c in table]
    return CurveTable(table.runs.values(), curves)


def test_where_guessing_is_not_known_a_large_rise_shows_that_a_score_is_above_it(table):
    unknown = without_chance(guessing(table, runs=RUNS))
    found = at_chance(unknown, [ALPHA, BETA], references=RUNS[:3], run=RUNS[3])
    assert found.keys() == {BETA}
    assert found[BETA].startswith("the score of guessing is not known (say it in a column chance or choices, or with")
    # Far above what guessing may be and never risen: nothing tells the two apart.
    high = without_chance(guessing(table, runs=RUNS, by=0.4))
    assert at_chance(high, [BETA], references=RUNS[:3], run=RUNS[3]).keys() == {BETA}


def test_of_hundreds_of_guessed_curves_of_unknown_tasks_all_are_refused():
    known = without_chance(subjects(57))
    series = [Series(f"mmlu_{number}", "acc", 0) for number in range(57)]
    assert at_chance(known, series, references=RUNS[:4], run=RUNS[4]).keys() == set(series)


def test_an_unknown_task_is_not_trusted_before_it_has_risen_and_the_reason_says_why(table):
    verdicts = {
        one.series: one
        for one in judge(without_chance(guessing(table, runs=RUNS)), runs=RUNS[3:4])
        if one.run == RUNS[3]
    }
    assert verdicts[ALPHA].trusted and not verdicts[BETA].trusted
    assert verdicts[BETA].reason.startswith("the score of guessing is not known; ")
