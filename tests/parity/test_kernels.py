"""Fast kernels against plain ones over 200 steps: as far apart as two plain runs that differ in rounding alone."""

from __future__ import annotations

import numpy as np
import pytest

from tests.parity.workers import FUSED, Layout
from tests.support.ranks import run_ranks


@pytest.mark.slow
def test_200_steps_of_fast_and_plain_kernels_differ_as_two_plain_runs_do() -> None:
    """In bf16. The plain runs differ in the attention kernel and in the size of microbatches: both round elsewhere.

    Fast kernels round less often, so they are held to the same distance from a plain run as plain runs keep among each
    other, at its largest and on average; a factor of two is what such distances themselves vary by.
    """
    layouts = [
        Layout("plain", compute="bf16"),
        Layout("math", compute="bf16", kernels={"attention": "math"}),
        Layout("other microbatches", compute="bf16", micro_batch_size=4),
        Layout("fast", compute="bf16", kernels=FUSED),
    ]
    found = run_ranks("tests.parity.kernel_workers:losses", 1, layouts)[0]
    plain, math, other, fast = (np.array(one) for one in found)
    noise = [np.abs(one - plain) for one in (math, other)]
    distance = np.abs(fast - plain)
    print(f"largest {distance.max():.2e} of {[f'{n.max():.2e}' for n in noise]}, "
          f"mean {distance.mean():.2e} of {[f'{n.mean():.2e}' for n in noise]}")  # fmt: skip
    assert plain[-1] < plain[0] - 1, "they learn"
    assert distance.max() <= 2 * max(one.max() for one in noise)
    assert distance.mean() <= 2 * max(one.mean() for one in noise)
