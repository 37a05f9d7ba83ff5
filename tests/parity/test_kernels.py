"""Fast kernels against plain ones over 200 steps in bf16: no further from fp32, and as far apart as plain runs are."""

from __future__ import annotations

import numpy as np
import pytest

from tests.parity.workers import FUSED, Layout
from tests.support.ranks import run_ranks


@pytest.mark.slow
def test_200_steps_of_fast_and_plain_kernels_differ_as_two_plain_runs_do() -> None:
    """The plain runs differ in the size of their microbatches, and so in where sums are rounded.

    A factor of two is allowed between distances of single runs: their largest differences vary by about that much
    (three plain runs are 1.3e-3 to 1.5e-3 apart). From fp32 all are equally far, fast ones a little less.
    """
    layouts = [
        Layout("fp32"),
        Layout("plain", compute="bf16"),
        Layout("microbatches of 4", compute="bf16", micro_batch_size=4),
        Layout("microbatches of 8", compute="bf16", micro_batch_size=8),
        Layout("fast", compute="bf16", kernels=FUSED),
    ]
    found = run_ranks("tests.parity.kernel_workers:losses", 1, layouts)[0]
    exact, plain, four, eight, fast = (np.array(one) for one in found)
    assert plain[-1] < plain[0] - 1, "they learn"
    noise, distance = [np.abs(one - plain) for one in (four, eight)], np.abs(fast - plain)
    assert distance.max() <= 2 * max(one.max() for one in noise)
    assert distance.mean() <= 2 * max(one.mean() for one in noise)
    assert np.abs(fast - exact).mean() <= 1.1 * max(np.abs(one - exact).mean() for one in (plain, four, eight))
