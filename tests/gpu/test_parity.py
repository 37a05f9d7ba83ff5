"""The same parity as on CPU, on one GPU: fp32 with TF32 off and on, bf16 with fp32 masters, both engines."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

from tests.parity.test_layouts import reference, reference_bf16
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


# fp32 differs in summation order only. TF32 keeps 10 bits of mantissa in products: losses around 7 nats then agree to
# about 1e-3 of themselves at most, half of that in practice.
@pytest.mark.parametrize(("name", "tolerance"), [("fp32", 1e-5), ("tf32", 5e-4)])
def test_one_gpu_trains_like_hugging_face_in_fp32(name: str, tolerance: float, results: Any) -> None:
    layout = next(layout for layout in LAYOUTS if layout.name == name)
    oracle = reference(layout, results[name]["start"])
    np.testing.assert_allclose(results[name]["losses"], oracle["losses"], rtol=tolerance)


def test_one_gpu_trains_like_hugging_face_in_bf16(results: Any) -> None:
    oracle = reference_bf16(LAYOUTS[2], results["bf16"]["start"])
    np.testing.assert_allclose(results["bf16"]["losses"], oracle["losses"], rtol=5e-4)


@pytest.mark.skipif(importlib.util.find_spec("transformer_engine") is None, reason="needs transformer_engine")
@pytest.mark.parametrize(("compute", "tolerance"), [("fp32", 1e-5), ("bf16", 5e-4)])
def test_transformer_engine_trains_and_validates_like_the_local_layers(compute: str, tolerance: float) -> None:
    layouts = [Layout(str(te), compute=compute, transformer_engine=te) for te in (False, True)]
    local, te = run_ranks("tests.parity.workers:train", 1, layouts)[0]
    np.testing.assert_allclose(te["losses"], local["losses"], rtol=tolerance)
    np.testing.assert_allclose(te["validation"], local["validation"], rtol=tolerance)
    assert [part[0] for part in te["weights"]] == [part[0] for part in local["weights"]], "keys in checkpoints"


DEEPSPEED = [
    Layout("ZeRO-1", zero=1),
    Layout("ZeRO-2, offloaded", zero=2, offload="optimizer"),
    Layout("ZeRO-3", zero=3),
    Layout("ZeRO-3, all offloaded", zero=3, offload="optimizer and parameters"),
]
ADAMS = ("torch", "auto", "deepspeed")


@pytest.mark.parametrize("adam", ADAMS)
@pytest.mark.parametrize(("compute", "tolerance"), [("fp32", 1e-5), ("bf16", 5e-4)])
def test_deepspeed_trains_like_hugging_face_with_every_adam(compute: str, tolerance: float, adam: str) -> None:
    layouts = [Layout(**{**vars(layout), "compute": compute, "adam": adam}) for layout in DEEPSPEED]
    found = run_ranks("tests.parity.workers:train", 1, layouts, timeout_seconds=1200)[0]  # the first one compiles
    oracle = (reference if compute == "fp32" else reference_bf16)(layouts[0], found[0]["start"])
    for result in found:
        np.testing.assert_allclose(result["losses"], oracle["losses"], rtol=tolerance, err_msg=result["name"])
