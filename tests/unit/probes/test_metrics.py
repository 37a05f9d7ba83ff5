import math

import numpy as np
import pytest

from probes.metrics import DASHBOARD_METRICS, VARIANTS, item_metrics, mean_and_stderr
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


def test_items_without_exactly_one_right_answer_are_left_out():
    items = [[True, False], [False, False], [True, True]]
    columns = table(items, num_tokens=[1] * 6, num_chars=[1] * 6, num_bytes=[1] * 6)
    found = {value.metric: value for value in item_metrics(columns, np.log([0.5, 0.1, 0.1, 0.1, 0.1, 0.1]))}
    assert found["correct_prob"].value == pytest.approx(0.5)
    assert {value.num_items for value in found.values()} == {1}
    none = table([[False, False]], num_tokens=[1] * 2, num_chars=[1] * 2, num_bytes=[1] * 2)
    assert item_metrics(none, np.zeros(2)) == []


def test_items_may_differ_in_their_number_of_choices():
    items = [[True, False, False], [False, True]]
    columns = table(items, num_tokens=[1] * 5, num_chars=[1] * 5, num_bytes=[1] * 5)
    found = values(columns, np.log([0.6, 0.3, 0.1, 0.8, 0.2]).tolist())
    assert found["margin"] == pytest.approx(((0.6 - 0.3) + (0.2 - 0.8)) / 2)


def test_a_single_item_has_no_standard_error():
    assert mean_and_stderr(np.array([0.5])) == (0.5, None)


def test_dashboard_metrics_exist():
    columns = table([[True, False]], num_tokens=[1] * 2, num_chars=[1] * 2, num_bytes=[1] * 2)
    assert set(DASHBOARD_METRICS) <= set(values(columns, [-1.0, -2.0]))


@pytest.mark.parametrize(
    ("text", "expected"), [(" cat", (3, 3)), ("cat ", (4, 4)), ("\n\n é", (1, 2)), (" ", (1, 1)), ("", (1, 1))]
)
def test_lengths_leave_out_leading_white_space(text: str, expected: tuple[int, int]):
    assert text_lengths(text) == expected
