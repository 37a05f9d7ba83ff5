"""What it costs to know which sample comes when: ours, and the index that megatron-core builds for it.

`python -m tests.bench.order [--quick] --json FILE`. Every measurement is a process of its own, so that memory is its
alone. Ours: a mixture of Amber's seven sources over 10^9 samples is opened, then places far away are asked for in a
fresh process. megatron-core's: `BlendedMegatronDatasetBuilder` over two sources (weights .7 and .3) whose few tokens
are gone through as often as the samples asked for need, which is what its document, sample and shuffle indices are
made from; nothing is cached on disk. Also in the file: how evenly the permutation deals, and how far counts are off.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pretrain.data.order import MixtureOrder, SampleOrder, Shares
from pretrain.data.permutation import permutation_key, permute_array
from tests.bench.result import describe_machine, is_quiet, package_versions, write_result

SEQUENCE_LENGTH = 2048
NUM_SAMPLES = 10**9
BATCH = 1024
# Billions of tokens of LLM360/AmberDatasets.
AMBER = {"arxiv": 30, "book": 28.86, "c4": 197.67, "refinedweb": 665.01, "starcoder": 291.92, "se": 21.75, "wiki": 23.9}


def amber_order() -> SampleOrder:
    """A mixture of Amber's sources, large enough for 10^9 samples in two epochs."""
    weights = {name: Fraction(str(billions)) for name, billions in AMBER.items()}
    tokens = {name: int(billions * 1e9) for name, billions in AMBER.items()}
    order = MixtureOrder([Shares(0, weights)], seed=1, num_tokens=tokens, sequence_length=SEQUENCE_LENGTH)
    return SampleOrder(order)


def resident_megabytes() -> float:
    """Memory of this process."""
    return psutil.Process().memory_info().rss / 1e6


def measure_open() -> dict[str, float]:
    """Opening an order of 10^9 samples and finding its last batch: seconds, and memory it adds."""
    before, started = resident_megabytes(), time.perf_counter()
    order = amber_order()
    opened = time.perf_counter() - started
    order.locate(NUM_SAMPLES - BATCH, BATCH)
    return {
        "open_seconds": opened,
        "open_and_last_batch_seconds": time.perf_counter() - started,
        "megabytes": resident_megabytes() - before,
    }


def measure_seek() -> dict[str, float]:
    """Finding the batch of step 10^8 in an order that has just been opened."""
    order = amber_order()
    started = time.perf_counter()
    found = order.locate(10**8 * BATCH, BATCH)
    seconds = time.perf_counter() - started
    assert len(found.window) == BATCH
    return {"seek_milliseconds": seconds * 1e3}


def measure_megatron(prefixes: list[str], num_samples: int) -> dict[str, float]:
    """Building megatron-core's blended index."""
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=SEQUENCE_LENGTH,
        blend=(prefixes, [0.7, 0.3]),
        split="1,0,0",
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        tokenizer=_Vocabulary(),
    )
    before, started = resident_megabytes(), time.perf_counter()
    dataset = BlendedMegatronDatasetBuilder(GPTDataset, [num_samples, 0, 0], lambda: True, config).build()[0]
    seconds = time.perf_counter() - started
    assert len(dataset) >= num_samples
    return {"seconds": seconds, "megabytes": resident_megabytes() - before}


class _Vocabulary:
    """What megatron-core asks of a tokenizer to build an index."""

    unique_identifiers = {"class": "none"}
    eod = 0
    vocab_size = 32_000


def write_sources(folder: Path, *, documents: int) -> list[str]:
    """Two token files of documents of 1,000 tokens."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    prefixes = []
    for name in ("a", "b"):
        prefix = str(folder / name)
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
        for _ in range(documents):
            builder.add_document(torch.ones(1000, dtype=torch.int32), [1000])
        builder.finalize(f"{prefix}.idx")
        prefixes.append(prefix)
    return prefixes


def evenness() -> dict[str, float]:
    """Chi-square over cells of where the permutation of 10^9 sends its first million, and their neighbours."""
    from scipy import stats

    places = permute_array(permutation_key(0, "bench", 0), NUM_SAMPLES, np.arange(10**6)) / NUM_SAMPLES
    cells = np.bincount((places * 4096).astype(int), minlength=4096)
    pairs = np.histogram2d(places[:-1], places[1:], bins=64)[0]
    return {
        "p_value_places": float(stats.chisquare(cells).pvalue),
        "p_value_neighbours": float(stats.chisquare(pairs.ravel()).pvalue),
        "collisions": float(10**6 - len(np.unique(places))),
    }


def largest_mixture_error(*, prefixes: int) -> float:
    """Largest distance of a source's count from its share, in samples, over prefixes at random up to 10^9."""
    order = amber_order().order
    assert isinstance(order, MixtureOrder)
    total = sum(Fraction(str(b)) for b in AMBER.values())
    worst = Fraction(0)
    for n in np.random.default_rng(0).integers(1, NUM_SAMPLES, prefixes).tolist():
        drawn = order.drawn_before(n)
        worst = max(worst, *(abs(drawn.get(name, 0) - n * Fraction(str(b)) / total) for name, b in AMBER.items()))
    return float(worst)


def measure(what: str, **options: Any) -> dict[str, float]:
    """One measurement in a process of its own."""
    asked = json.dumps({"what": what, **options})
    command = [sys.executable, "-m", "tests.bench.order", "--measure", asked]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def figures(*, quick: bool) -> dict[str, Any]:
    """All figures; medians over rounds."""
    rounds = 3 if quick else 7

    def median(run: Callable[[], dict[str, float]]) -> dict[str, float]:
        found = [run() for _ in range(rounds)]
        return {name: statistics.median(one[name] for one in found) for name in found[0]}

    opened, sought = median(lambda: measure("open")), median(lambda: measure("seek"))
    megatron = {}
    with tempfile.TemporaryDirectory() as folder:
        prefixes = write_sources(Path(folder), documents=2000)
        for num_samples in (10**4, 10**5) if quick else (10**5, 10**6, 10**7):
            megatron[f"{num_samples:.0e}".replace("e+0", "e")] = measure(
                "megatron", prefixes=prefixes, num_samples=num_samples
            )
    return {
        "open_seconds_1e9": opened["open_seconds"],
        "open_and_last_batch_seconds_1e9": opened["open_and_last_batch_seconds"],
        "open_megabytes_1e9": opened["megabytes"],
        "seek_milliseconds": sought["seek_milliseconds"],
        "megatron_index": megatron,
        "permutation": evenness(),
        "largest_mixture_error_samples": largest_mixture_error(prefixes=200 if quick else 5000),
    }


def main(arguments: list[str]) -> None:
    """Runs and writes the result."""
    parser = argparse.ArgumentParser("python -m tests.bench.order", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller indices")
    parser.add_argument("--json", type=Path, help="result file")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        asked = json.loads(options.measure)
        what = asked.pop("what")
        measurements = {"open": measure_open, "seek": measure_seek, "megatron": measure_megatron}
        print(json.dumps(measurements[what](**asked)))
        return
    machine = describe_machine(threads=1)
    is_quiet(machine)
    found = figures(quick=options.quick)
    print(json.dumps(found, indent=2))
    if options.json:
        command = f"python -m tests.bench.order{' --quick' if options.quick else ''} --json {options.json}"
        versions = package_versions(["numpy", "megatron-core", "torch"])
        write_result(options.json, name="order", figures=found, command=command, machine=machine, versions=versions)


if __name__ == "__main__":
    main(sys.argv[1:])
