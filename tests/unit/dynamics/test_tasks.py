import math

import pytest

from probes.dynamics.tasks import chance_of, domain_of, is_twin


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("piqa", "commonsense"),
        ("fineline_piqa", "commonsense"),
        ("piqa_val_rc_5shot", "commonsense"),
        ("hendrycksTest-anatomy", "examination"),
        ("mmlu_stem_val_rc_5shot", "examination"),
        ("lambada_openai", "language"),
        ("arc_easy", "knowledge"),
        ("crows_pairs_english_age", "bias"),
        ("my_own_task", "other"),
        ("recorder", "other"),
        ("math", "mathematics"),
        ("mathqa", "other"),
    ],
)
def test_a_domain_is_known_by_how_a_name_begins(name: str, domain: str) -> None:
    assert domain_of(name) == domain


def test_the_longest_known_name_counts() -> None:
    assert domain_of("openbook_qa_test") == domain_of("openbookqa") == "knowledge"
    assert chance_of("commonsense_qa", "acc") == 0.2
    assert domain_of("my_own_task", otherwise="mine") == "mine"


def test_chance_is_known_of_accuracies_only() -> None:
    assert chance_of("social_iqa", "acc") == pytest.approx(1 / 3)
    assert chance_of("arc_easy_test_rc_5shot", "len_norm") == 0.25
    assert chance_of("lambada_openai", "acc") == 0.0
    assert math.isnan(chance_of("piqa", "gold_bpb"))
    assert math.isnan(chance_of("my_own_task", "acc"))
    assert chance_of("my_own_task", "acc_rescaled") == 0.0


def test_splits_of_one_task_are_twins_and_other_tasks_are_not() -> None:
    assert is_twin("mmlu_stem_val_rc_5shot", "mmlu_stem_test_rc_5shot")
    assert is_twin("piqa", "piqa")
    assert not is_twin("arc_easy_val", "arc_challenge_val")
    assert not is_twin("validated_task", "task")
