"""The same parity as on CPU, on one GPU: fp32 with TF32 off and on, and bf16 with fp32 master weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.parity.test_layouts import reference
from tests.parity.workers import Layout
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

LAYOUTS = [
    Layout("fp32", micro_batch_size=4),
    Layout("tf32", micro_batch_size=4, tf32=True),
    Layout("bf16", compute="bf16"),
]


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, Any]]:
    found = run_ranks("tests.parity.workers:train", 1, LAYOUTS)[0]
    return {result["name"]: result for result in found}


# fp32 differs in summation order only. TF32 keeps 10 bits of mantissa in products, bf16 7 in everything but the
# master weights: losses around 7 nats then agree to about 1e-3 of themselves at most, half of that in practice.
@pytest.mark.parametrize(("name", "tolerance"), [("fp32", 1e-5), ("tf32", 5e-4), ("bf16", 5e-4)])
def test_one_gpu_trains_like_hugging_face_in_fp32(name: str, tolerance: float, results: Any) -> None:
    layout = next(layout for layout in LAYOUTS if layout.name == name)
    oracle = reference(layout, results[name]["start"])
    np.testing.assert_allclose(results[name]["losses"], oracle["losses"], rtol=tolerance)
