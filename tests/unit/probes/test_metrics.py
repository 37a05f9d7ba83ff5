import dataclasses
import math

import numpy as np
import pytest

from probes.metrics import (
    DASHBOARD_METRICS,
    RECORD_ONLY,
    VARIANTS,
    MetricValue,
    answer_starts,
    item_metrics,
    mean_and_stderr,
    rescaled,
    rescaled_accuracies,
)
from probes.plan import RequestTable
from probes.request import text_lengths


def table(
    items: list[list[bool]], *, num_tokens: list[int], num_chars: list[int], num_bytes: list[int]
) -> RequestTable:
    """One task; each item is the list of its choices' gold flags."""
    flags = [flag for item in items for flag in item]
    return RequestTable(
        task_R=np.zeros(len(flags), np.int32),
        item_R=np.repeat(np.arange(len(items)), [len(item) for item in items]).astype(np.int32),
        choice_R=np.concatenate([np.arange(len(item)) for item in items]).astype(np.int32),
        is_choice_R=np.ones(len(flags), bool),
        is_gold_R=np.array(flags),
        is_whole_R=np.zeros(len(flags), bool),
        num_chars_R=np.array(num_chars, np.int32),
        num_bytes_R=np.array(num_bytes, np.int32),
        span_pairs=np.arange(sum(num_tokens)),
        span_offsets_R1=np.concatenate([[0], np.cumsum(num_tokens)]),
    )


def values(columns: RequestTable, log_likelihood: list[float]) -> dict[str, float]:
    return {value.metric: value.value for value in item_metrics(columns, np.array(log_likelihood))}


def test_metrics_of_one_item_follow_their_formulas():
    columns = table([[False, True, False]], num_tokens=[1, 2, 4], num_chars=[2, 4, 8], num_bytes=[2, 5, 8])
    p = [0.2, 0.1, 0.4]
    found = values(columns, [math.log(value) for value in p])
    assert found["correct_prob"] == pytest.approx(0.1)
    assert found["margin"] == pytest.approx(0.1 - 0.4)
    assert found["norm_correct_prob"] == pytest.approx(0.1 / 0.7)
    assert found["norm_margin"] == pytest.approx((0.1 - 0.4) / 0.7)
    assert found["gold_bpb"] == pytest.approx(-math.log2(0.1) / 5)
    per_token = [0.2, 0.1 ** (1 / 2), 0.4 ** (1 / 4)]
    per_char = [0.2 ** (1 / 2), 0.1 ** (1 / 4), 0.4 ** (1 / 8)]
    per_byte = [0.2 ** (1 / 2), 0.1 ** (1 / 5), 0.4 ** (1 / 8)]
    for suffix, q in (("_per_token", per_token), ("_per_char", per_char), ("_per_byte", per_byte)):
        assert found["correct_prob" + suffix] == pytest.approx(q[1])
        assert found["total_prob" + suffix] == pytest.approx(sum(q))
        assert found["soft_log" + suffix] == pytest.approx(math.log(q[1] / sum(q)))
        assert found["margin" + suffix] == pytest.approx(q[1] - max(q[0], q[2]))
        assert found["norm_correct_prob" + suffix] == pytest.approx(q[1] / sum(q))


def test_values_are_means_over_items_with_the_standard_error_of_the_mean():
    columns = table([[True, False]] * 3, num_tokens=[1] * 6, num_chars=[1] * 6, num_bytes=[1] * 6)
    gold = [0.5, 0.25, 0.125]
    scores = np.log([probability for value in gold for probability in (value, 1 - value)])
    found = {value.metric: value for value in item_metrics(columns, scores)}
    assert found["correct_prob"].value == pytest.approx(np.mean(gold))
    assert found["correct_prob"].stderr == pytest.approx(np.std(gold, ddof=1) / math.sqrt(3))
    assert found["correct_prob"].num_items == 3


def test_normalised_metrics_survive_answers_too_unlikely_for_floats():
    columns = table([[True, False]], num_tokens=[400, 400], num_chars=[900, 900], num_bytes=[900, 900])
    found = values(columns, [-4000.0, -4001.0])
    assert found["correct_prob"] == found["margin"] == 0.0
    assert found["norm_correct_prob"] == pytest.approx(1 / (1 + math.exp(-1)))
    assert found["norm_margin"] == pytest.approx((1 - math.exp(-1)) / (1 + math.exp(-1)))


def test_an_item_with_a_single_answer_has_no_margin():
    columns = table([[True], [True]], num_tokens=[1, 1], num_chars=[4, 4], num_bytes=[4, 4])
    found = values(columns, [math.log(0.5), math.log(0.25)])
    assert set(found) == {"gold_bpb", *("correct_prob" + suffix for suffix in VARIANTS)}
    assert found["gold_bpb"] == pytest.approx((1 + 2) / 2 / 4)


def test_items_without_a_right_answer_are_left_out():
    columns = table([[True, False], [False, False]], num_tokens=[1] * 4, num_chars=[1] * 4, num_bytes=[1] * 4)
    found = {value.metric: value for value in item_metrics(columns, np.log([0.5, 0.1, 0.1, 0.1]))}
    assert found["correct_prob"].value == pytest.approx(0.5)
    assert {value.num_items for value in found.values()} == {1}
    none = table([[False, False]], num_tokens=[1] * 2, num_chars=[1] * 2, num_bytes=[1] * 2)
    assert item_metrics(none, np.zeros(2)) == []


def test_of_several_right_answers_the_probability_is_the_sum_and_the_share_that_of_mc2():
    columns = table([[False, True, True, False]], num_tokens=[1] * 4, num_chars=[1, 2, 4, 1], num_bytes=[1, 2, 4, 1])
    found = values(columns, np.log([0.1, 0.05, 0.3, 0.15]).tolist())
    assert found["correct_prob"] == pytest.approx(0.35)
    assert found["total_prob"] == pytest.approx(0.6)
    assert found["norm_correct_prob"] == pytest.approx(0.35 / 0.6)
    assert found["soft_log"] == pytest.approx(math.log(0.35 / 0.6))
    assert found["margin"] == pytest.approx(0.3 - 0.15)
    assert found["norm_margin"] == pytest.approx((0.3 - 0.15) / 0.6)
    assert found["gold_bpb"] == pytest.approx(-math.log2(0.05) / 2)  # of the first right answer
    assert found["correct_prob_per_char"] == pytest.approx(0.05 ** (1 / 2) + 0.3 ** (1 / 4))
    everything = table([[True, True]], num_tokens=[1] * 2, num_chars=[1] * 2, num_bytes=[1] * 2)
    assert values(everything, np.log([0.1, 0.4]).tolist())["margin"] == pytest.approx(0.4)


def test_the_logarithm_of_the_share_survives_answers_too_unlikely_for_floats():
    columns = table([[True, False]], num_tokens=[400] * 2, num_chars=[900] * 2, num_bytes=[900] * 2)
    found = values(columns, [-4900.0, -4000.0])
    assert found["norm_correct_prob"] == 0.0
    assert found["soft_log"] == pytest.approx(-900.0)


def test_ppl_mode_divides_by_all_tokens_and_takes_the_first_of_equals():
    columns = table([[False, True], [True, False]], num_tokens=[3, 7, 1, 3], num_chars=[1] * 4, num_bytes=[1] * 4)
    columns = dataclasses.replace(columns, is_choice_R=np.zeros(4, bool), is_whole_R=np.ones(4, bool))
    # scores 8/4 and 12/8; then 2/2 and 4/4, equal, of which the first is right
    found = {value.metric: value for value in item_metrics(columns, -np.array([8.0, 12.0, 2.0, 4.0]))}
    assert set(found) == {"ppl_acc", "ppl_gold"}
    assert (found["ppl_acc"].value, found["ppl_acc"].stderr) == (1.0, 0.0)
    assert found["ppl_gold"].value == pytest.approx((1.5 + 1.0) / 2)
    assert found["ppl_gold"].stderr == pytest.approx(np.std([1.5, 1.0], ddof=1) / math.sqrt(2))
    columns = dataclasses.replace(columns, is_gold_R=np.array([False, True, False, True]))
    found = {value.metric: value.value for value in item_metrics(columns, -np.array([8.0, 12.0, 2.0, 4.0]))}
    assert found["ppl_acc"] == 0.5
    # A mean of 3/3 and 7/7 would not tell them apart: the divisor is the number of tokens, the first included.
    found = {value.metric: value.value for value in item_metrics(columns, -np.array([3.0, 7.0, 1.0, 3.0]))}
    assert found["ppl_acc"] == 0.0 and found["ppl_gold"] == pytest.approx((7 / 8 + 3 / 4) / 2)


def test_rescaled_accuracy_is_zero_for_guessing_and_one_for_everything_right():
    assert [rescaled(value, 0.25) for value in (0.25, 1.0, 0.625, 0.0)] == pytest.approx([0, 1, 0.5, -1 / 3])
    measured = [MetricValue(0, "acc", 0.4, 0.03, 9), MetricValue(1, "acc_norm", 0.7, None, 9)]
    others = [MetricValue(0, "gold_bpb", 1.0, 0.1, 9), MetricValue(2, "acc", 0.1, 0.01, 9)]
    found = rescaled_accuracies(measured + others, {0: 0.25, 1: 0.5})
    assert [(value.task, value.metric, value.num_items) for value in found] == [
        (0, "acc_rescaled", 9), (1, "acc_norm_rescaled", 9), (2, "acc_rescaled", 9),
    ]  # fmt: skip
    assert [value.value for value in found] == pytest.approx([0.2, 0.4, 0.1])
    assert [value.stderr for value in found] == [pytest.approx(0.04), None, pytest.approx(0.01)]


def test_windows_of_a_text_answer_one_request_together_and_whole_prompts_none():
    columns = table([[False] * 3, [False] * 2, [True, False]], num_tokens=[1] * 7, num_chars=[1] * 7, num_bytes=[1] * 7)
    columns = dataclasses.replace(
        columns,
        choice_R=np.array([0, 0, 0, 0, 1, 0, 1], np.int32),
        is_whole_R=np.array([False] * 5 + [True] * 2),
    )
    requests, starts = answer_starts(columns)
    assert requests.tolist() == [0, 1, 2, 3, 4]
    assert starts.tolist() == [0, 3, 4]


def test_items_may_differ_in_their_number_of_choices():
    items = [[True, False, False], [False, True]]
    columns = table(items, num_tokens=[1] * 5, num_chars=[1] * 5, num_bytes=[1] * 5)
    found = values(columns, np.log([0.6, 0.3, 0.1, 0.8, 0.2]).tolist())
    assert found["margin"] == pytest.approx(((0.6 - 0.3) + (0.2 - 0.8)) / 2)


def test_a_single_item_has_no_standard_error():
    assert mean_and_stderr(np.array([0.5])) == (0.5, None)


def test_dashboard_metrics_exist():
    columns = table([[True, False]], num_tokens=[1] * 2, num_chars=[1] * 2, num_bytes=[1] * 2)
    assert set(DASHBOARD_METRICS) | RECORD_ONLY == set(values(columns, [-1.0, -2.0]))
    assert not set(DASHBOARD_METRICS) & RECORD_ONLY


@pytest.mark.parametrize(
    ("text", "expected"), [(" cat", (3, 3)), ("cat ", (4, 4)), ("\n\n é", (1, 2)), (" ", (1, 1)), ("", (1, 1))]
)
def test_lengths_leave_out_leading_white_space(text: str, expected: tuple[int, int]):
    assert text_lengths(text) == expected
