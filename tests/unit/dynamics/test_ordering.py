import numpy as np
import pytest
from scipy import stats

from probes.dynamics.definitions import ordering_consistency
from probes.dynamics.ordering import compare_orders
from probes.dynamics.published import olmo_ladder, pythia
from probes.dynamics.table import CurveTable, RunFacts, Series, make_curve


def runs_of(values_by_run, tokens):
    curves = [
        make_curve(
            np.arange(len(values), dtype=float),
            np.asarray(tokens[run], float),
            np.asarray(values, float),
            np.full(len(values), 0.01),
            run=run,
            series=Series("task", "acc"),
            domain="knowledge",
            chance=0.25,
        )
        for run, values in values_by_run.items()
    ]
    return CurveTable([RunFacts(name=run, parameters=1e9) for run in values_by_run], curves)


def test_pythias_order_of_sizes_is_the_reference_and_already_right_at_a_quarter():
    orders = {one.series: one for one in compare_orders(pythia(deduped=False, num_fewshot=0))}
    arc = orders[Series("arc_easy", "acc", 0)]
    assert round(arc.ordering_consistency, 4) == 0.9945
    assert arc.decision_accuracy == 1.0 and arc.is_non_random
    assert arc.early_tokens == pytest.approx(143_000 * 2_097_152 / 4)
    assert orders[Series("wsc", "acc", 0)].decision_accuracy < 0.6
    assert orders[Series("lambada_openai", "ppl", 0)].is_non_random is None


def test_signal_and_noise_are_those_of_the_last_five_checkpoints():
    table = pythia(deduped=False, num_fewshot=0)
    curves = table.of_series(Series("piqa", "acc", 0))
    means = np.array([curve.value_C[-5:].mean() for curve in curves])
    last = curves[-1].value_C[-5:]
    expected = (np.ptp(means) / means.mean()) / (last.std() / last.mean())
    (order,) = compare_orders(table.select(series=[Series("piqa", "acc", 0)]))
    assert order.signal_to_noise == pytest.approx(expected)


def test_runs_of_other_checkpoints_are_compared_between_them():
    tokens = {"a": np.arange(1, 11) * 1e9, "b": np.arange(1, 21) * 5e8 + 1e8}
    table = runs_of({"a": np.linspace(0.3, 0.5, 10), "b": np.linspace(0.35, 0.55, 20)}, tokens)
    (order,) = compare_orders(table)
    assert order.decision_accuracy == 1.0 and order.ordering_consistency == 1.0


def test_runs_that_share_no_tokens_are_left_out():
    tokens = {"a": np.arange(1, 6) * 1e9, "b": np.arange(1, 6) * 1e12}
    assert compare_orders(runs_of({"a": np.ones(5), "b": np.ones(5)}, tokens)) == []


def test_bits_per_byte_order_runs_downwards():
    table = olmo_ladder()
    runs = ["190M-10xC", "370M-10xC", "760M-10xC", "1B-10xC"]
    orders = {one.series: one for one in compare_orders(table, runs=runs)}
    bytes_order = orders[Series("hellaswag_val_rc_5shot", "bpb")]
    assert bytes_order.decision_accuracy == 1.0 and bytes_order.ordering_consistency > 0.95
    finals = [table.get(run, bytes_order.series).value_C[-1] for run in bytes_order.runs]
    assert stats.kendalltau(finals, range(4)).statistic == -1.0


def test_the_order_of_two_opposite_checkpoints_is_inconsistent():
    assert ordering_consistency(np.array([[0.0, 1.0], [1.0, 0.0]])) == -1.0
