import pytest

from probes.dynamics.benchmarks import benchmark_of, parts_of_large_benchmarks
from probes.dynamics.published import olmo_ladder, pythia
from probes.dynamics.recommend import recommend, soon, trusted_since
from probes.dynamics.table import Series

LARGE = ("410m", "1b", "1.4b", "2.8b", "6.9b", "12b")


@pytest.mark.parametrize("num_fewshot", [0, 5])
@pytest.mark.parametrize("deduped", [False, True])
def test_four_tasks_are_recommended_from_410m_on_and_guessing_ones_never(deduped, num_fewshot):
    table = pythia(deduped=deduped, num_fewshot=num_fewshot)
    for run in table.runs:
        tasks = [one.series.task for one in recommend(table, run)]
        assert len(tasks) == len(set(tasks)) <= 6
        assert not {"wsc", "logiqa"} & set(tasks)
        assert not any(task.startswith(("hendrycksTest", "crows")) for task in tasks)
        if any(f"-{size}" in run for size in LARGE):
            assert {"lambada_openai", "arc_easy", "piqa", "sciq"} <= set(tasks)


def test_what_decayed_is_not_recommended_at_the_end_though_it_was_before():
    table = pythia(deduped=False, num_fewshot=0)
    assert recommend(table, "pythia-70m") == []
    assert [one.series.task for one in recommend(table, "pythia-70m", tokens=63_000 * 2_097_152)]


def test_the_reason_has_the_verdicts_numbers():
    first = recommend(pythia(deduped=False, num_fewshot=0), "pythia-12b")[0]
    assert first.verdict.trusted and first.reason == first.verdict.reason
    assert "times its noise" in first.reason


def test_twins_are_recommended_once_and_bits_per_byte_before_their_noisy_accuracies():
    chosen = recommend(olmo_ladder(), "190M-5xC", limit=8)
    names = [one.series.task.replace("_val_", "_test_") for one in chosen]
    assert len(names) == len(set(names)) == 8
    assert {one.series.metric for one in chosen} == {"bpb"}


def test_domains_take_turns():
    chosen = recommend(pythia(deduped=False, num_fewshot=0), "pythia-12b", limit=3)
    assert {one.domain for one in chosen} == {"language", "knowledge", "commonsense"}


def test_a_series_is_trusted_from_the_look_after_which_it_always_is():
    table = pythia(deduped=False, num_fewshot=0)
    since = trusted_since(table, "pythia-1.4b")
    assert since[Series("sciq", "acc", 0)] == 23_000 * 2_097_152
    assert since[Series("winogrande", "acc", 0)] > since[Series("piqa", "acc", 0)]
    assert Series("logiqa", "acc", 0) not in since


def test_what_will_tell_something_soon_is_taken_from_the_nearest_finished_run():
    table = pythia(deduped=False, num_fewshot=0)
    found = soon(table.until("pythia-1b-bf16", 13_000 * 2_097_152), "pythia-1b-bf16")
    tokens, run = found[Series("sciq", "acc", 0)]
    assert run == "pythia-1.4b" and tokens == 23_000 * 2_097_152
    assert Series("logiqa", "acc", 0) not in found
    # Of a task that can be trusted by one metric the others are not announced.
    later = soon(table.until("pythia-1b-bf16", 33_000 * 2_097_152), "pythia-1b-bf16")
    assert {one.task for one in later} == {"winogrande"}
    assert soon(table.select(runs=["pythia-1b-bf16"]), "pythia-1b-bf16") == {}


def test_parts_of_large_benchmarks_are_told_from_tasks_and_twins():
    names = [f"hendrycksTest-{part}" for part in "abcde"] + ["arc_easy", "arc_challenge"]
    names += [f"mmlu_{part}_{split}_rc" for part in ("stem", "other", "law", "art") for split in ("val", "test")]
    found = parts_of_large_benchmarks([Series(name, "acc") for name in names])
    assert set(found.values()) == {"hendrycksTest"} and len(found) == 5


def test_parts_of_a_benchmark_share_its_name():
    assert benchmark_of("hendrycksTest-virology") == benchmark_of("hendrycksTest-anatomy") == "hendrycksTest"
    assert benchmark_of("mmlu_stem_val_rc_5shot") == "mmlu"
