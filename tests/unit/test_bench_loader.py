"""What the loader's benchmark makes of its measurements: medians, and the best form of each peer."""

from __future__ import annotations

from tests.bench.loader import summarize


def rounds(*rates: float) -> list[dict[str, float]]:
    return [{"samples_per_second": rate, "p99_wait_ms": 1.0, "megabytes": 100.0} for rate in rates]


def test_ours_is_set_against_the_best_form_of_each_peer():
    found = summarize(
        {
            "ours": rounds(90.0, 100.0, 300.0),
            "megatron_workers_0": rounds(10.0),
            "megatron_workers_2": rounds(5.0, 20.0, 21.0),
            "hf_map_numpy_workers_0": rounds(25.0),
            "hf_batches_in_file_order": rounds(50.0),
        }
    )
    assert found["samples_per_second"] == 100.0
    assert (found["ratio_to_megatron"], found["ratio_to_hf_datasets"]) == (5.0, 2.0)
    assert (found["best_peer"], found["ratio_to_best_peer"]) == ("hf_batches_in_file_order", 2.0)
    assert (found["best_shuffling_peer"], found["ratio_to_best_shuffling_peer"]) == ("hf_map_numpy_workers_0", 4.0)
