import numpy as np
import pytest

from probes.dynamics.arising import agree, agreements, domains_arising, leads, order_of_arising
from probes.dynamics.onset import AT, NEVER
from probes.dynamics.published import pythia
from probes.dynamics.table import CurveTable, RunFacts, Series, make_curve

TOKENS = np.geomspace(1e7, 3e11, 40)
TASKS = tuple(
    Series(task, metric, 0)
    for task, metric in (
        ("lambada_openai", "acc"),
        ("piqa", "acc"),
        ("winogrande", "acc"),
        ("arc_easy", "acc"),
        ("arc_challenge", "acc_norm"),
        ("sciq", "acc"),
        ("logiqa", "acc_norm"),
        ("wsc", "acc"),
    )
)


@pytest.fixture(scope="module")
def table():
    return pythia(deduped=False, num_fewshot=0).select(series=TASKS)


def run_of(onsets, *, run="run", seed=0):
    rng = np.random.default_rng(seed)
    curves = []
    for task, onset in onsets.items():
        share = np.clip(np.log(TOKENS / onset) / np.log(30), 0, 1) if onset else np.zeros(40)
        curves.append(
            make_curve(
                np.arange(40.0),
                TOKENS,
                0.25 + 0.4 * share + rng.normal(0, 0.005, 40),
                np.full(40, 0.01),
                run=run,
                series=Series(task, "acc"),
                domain=task,
                chance=0.25,
            )
        )
    return CurveTable([RunFacts(name=run)], curves)


def test_abilities_come_in_the_order_of_their_onsets_and_those_without_one_last():
    found = order_of_arising(run_of({"late": 1e10, "never": None, "early": 2e8, "middle": 2e9}), "run")
    assert [one.series.task for one in found] == ["early", "middle", "late", "never"]
    assert [one.onset.state for one in found] == [AT, AT, AT, NEVER]


def test_a_lead_is_the_ratio_of_onsets_with_an_interval():
    found = domains_arising(run_of({"first": 5e8, "second": 5e9, "beside": 5.5e8, "never": None}), "run")
    by_pair = {(lead.first, lead.second): lead for lead in leads(found)}
    ahead = by_pair["first", "second"]
    assert ahead.words == "leads" and ahead.low < 10 < ahead.high * 1.2 and ahead.low > 1
    assert ahead.ratio == pytest.approx(10, rel=0.5)
    beside = next(lead for pair, lead in by_pair.items() if set(pair) == {"first", "beside"})
    assert beside.words == "together" and beside.low <= 1 <= beside.high
    alone = by_pair["second", "never"]
    assert alone.words == "alone" and np.isnan(alone.ratio)


def onsets_of(table, runs, *, draws=200):
    return {run: order_of_arising(table, run, draws=draws, seed=10_000 * index) for index, run in enumerate(runs)}


def test_runs_of_one_order_agree_and_of_opposite_orders_do_not():
    onsets = {"a": 1e8, "b": 1e9, "c": 1e10}
    tables = [run_of(onsets, run="x"), run_of(onsets, run="y", seed=1)]
    tables.append(run_of(dict(zip("abc", (1e10, 1e9, 1e8), strict=True)), run="z", seed=2))
    whole = CurveTable(
        [fact for one in tables for fact in one.runs.values()], [curve for one in tables for curve in one]
    )
    found = {(one.first, one.second): one for one in agreements(onsets_of(whole, ["x", "y", "z"]))}
    assert found["x", "y"].tau == 1.0 and found["x", "y"].low > 0.3
    assert found["x", "z"].tau == -1.0 and found["x", "z"].num_series == 3


def test_runs_that_share_no_series_have_no_agreement():
    nothing = agree({}, {}, first="x", second="y")
    assert np.isnan(nothing.tau) and nothing.num_series == 0


def test_pythias_sizes_agree_on_the_order_in_which_abilities_arise(table):
    large = [f"pythia-{size}" for size in ("410m", "1b-bf16", "1.4b", "2.8b", "6.9b", "12b")]
    taus = [one.tau for one in agreements(onsets_of(table, large, draws=100))]
    assert len(taus) == 15
    assert np.mean(taus) > 0.65


def test_pythias_commonsense_and_language_set_in_and_reasoning_does_not(table):
    found = {one.domain: one.onset.state for one in domains_arising(table, "pythia-6.9b")}
    assert found == {"language": AT, "knowledge": AT, "commonsense": AT, "reasoning": NEVER}
