"""What the GPU bench makes of its measurements: parts of a profile, shares, ratios, and outcomes that are kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.autograd import DeviceType

from tests.bench.gpu.gemm import products
from tests.bench.gpu.parts import part_of, seconds_by_part
from tests.bench.gpu.runs import Runs
from tests.bench.gpu.task import QUICK, SHAPES, Task
from tests.bench.gpu_step import figures_of


@pytest.mark.parametrize(
    ("kernel", "operators", "part"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_7", (), "attention"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits>", (), "attention"),
        ("fmha_cutlassF_bf16_aligned_64x128_rf_sm80", (), "attention"),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTN", ("aten::mm", "_LinearCrossEntropy"), "gemm"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", (), "gemm"),
        ("triton_red_fused_exp_sub_sum_3", ("Torch-Compiled Region: 4/0", "_LinearCrossEntropy"), "loss"),
        ("void at::native::elementwise_kernel", ("aten::mul_", "Optimizer.step#FusedAdamW.step"), "optimizer"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel", (), "optimizer"),
        ("Memcpy DtoD (Device -> Device)", ("aten::copy_",), "copies"),
        ("void at::native::vectorized_elementwise_kernel<4, CUDAFunctor_add>", ("aten::add_",), "elementwise"),
        ("triton_poi_fused_mul_silu_1", ("Torch-Compiled Region: 1/0",), "elementwise"),
    ],
)
def test_a_kernel_belongs_to_a_part_by_its_name_or_by_what_launched_it(
    kernel: str, operators: tuple[str, ...], part: str
) -> None:
    assert part_of(kernel, operators) == part


def _event(name: str, device: DeviceType, span: tuple[int, int], **further: Any) -> Any:
    time_range = SimpleNamespace(start=span[0], end=span[1])
    plain = {"kernels": [], "cpu_parent": None, "is_user_annotation": False, "self_cpu_time_total": 0}
    return SimpleNamespace(name=name, device_type=device, time_range=time_range, **{**plain, **further})


def test_idle_is_what_no_kernel_fills_and_annotations_are_no_kernels() -> None:
    def kernel(name: str, microseconds: int) -> Any:
        return SimpleNamespace(name=name, duration=microseconds)

    step = _event("Optimizer.step#AdamW.step", DeviceType.CPU, (0, 9), is_user_annotation=True)
    step.kernels = [kernel("Optimizer.step#AdamW.step", 900)]
    events = [
        step,
        _event("aten::mul_", DeviceType.CPU, (1, 2), cpu_parent=step, kernels=[kernel("elementwise", 100)]),
        _event("aten::mm", DeviceType.CPU, (3, 4), kernels=[kernel("nvjet_hsh", 300)]),
        _event("Optimizer.step#AdamW.step", DeviceType.CUDA, (0, 900), is_user_annotation=True),
        _event("elementwise", DeviceType.CUDA, (0, 100)),
        _event("nvjet_hsh", DeviceType.CUDA, (50, 350)),  # on another stream: 50 microseconds overlap
    ]
    seconds = seconds_by_part(events, wall_seconds=1e-3)
    assert seconds["optimizer"] == pytest.approx(1e-4) and seconds["gemm"] == pytest.approx(3e-4)
    assert seconds["idle"] == pytest.approx(1e-3 - 3.5e-4)
    assert sum(seconds.values()) == pytest.approx(1e-4 + 3e-4 + 6.5e-4)


def test_products_of_a_model_are_its_matrix_parameters() -> None:
    """Llama-7B: 6,607,077,376 weights meet a token (its 6,738,415,616 without input embedding and 65 norms)."""
    once = sum(count * inputs * outputs for _, inputs, outputs, count in products(SHAPES["7b"], 4096).values())
    assert once == 6_738_415_616 - 32_000 * 4096 - 65 * 4096


def _measured(contender: str, size: int, speed: float, **options: Any) -> dict[str, Any]:
    task = Task(contender=contender, model="1.3b", shape=SHAPES["1.3b"], micro_batch_size=size, options=options)
    return {"status": "measured", "tokens_per_second": speed, "task": json.loads(json.dumps(task.to_json()))}


def _failed(status: str) -> dict[str, Any]:
    return {"status": status, "reason": "why\nbecause", "task": {}}


def test_figures_take_the_best_of_each_side_and_say_what_is_missing() -> None:
    gemm = {"status": "measured", "peak_flops_per_second": 790e12, "1.3b": {"flops_per_second": 700e12}, "task": {}}
    outcomes: Mapping[str, Mapping[str, Any]] = {
        "1.3b/gemm": gemm,
        "1.3b/ours/8": _measured("ours", 8, 50_000.0),
        "1.3b/ours/16": _measured("ours", 16, 61_200.0),
        "1.3b/ours/32": _failed("out of memory"),
        "1.3b/torchtitan/16": _failed("out of memory"),
        "1.3b/torchtitan/8": _measured("torchtitan_trainer", 8, 51_000.0),
        "1.3b/litgpt/16": _failed("missing"),
        "1.3b/ours/16/plain": _measured("ours", 16, 30_600.0, kernels="plain"),
        "1.3b/ours/16/fp8": _failed("refused"),
    }
    figures = figures_of(outcomes, gpu="NVIDIA H200", quick=False)
    assert figures["mfu_a_1p3b"] == pytest.approx(0.55, abs=5e-4)  # 61,200 tokens/s x 8.887 GFLOP / 989 TFLOP/s
    assert figures["mfu_b_1p3b"] == pytest.approx(61_200 * 8.283e9 / 989e12, rel=1e-3)
    assert figures["share_of_gemm_peak_a_1p3b"] == pytest.approx(61_200 * 8.887e9 / 790e12, rel=1e-3)
    assert figures["micro_batch_size_1p3b"] == 16
    assert figures["ratio_torchtitan"] == figures["ratio_torchtitan_1p3b"] == pytest.approx(1.2)
    assert figures["ratio_litgpt"] is None and "because" in figures["missing"]["ratio_litgpt_1p3b"]
    assert figures["missing"]["ratio_hf_1p3b"] == "not run"
    assert figures["variants_1p3b"] == {"plain": 0.5, "fp8": "refused"}


def test_what_is_final_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([{"status": "missing", "reason": "no such package"}, {"status": "too slow", "reason": "60 s"}])
    monkeypatch.setattr(Runs, "_outcome", lambda *_: next(told))
    first = Runs(tmp_path / "kept.json", resume=False, limit_seconds=60.0)
    for name in ("a", "b"):
        first.run(name, "worker", {})
    assert set(json.loads((tmp_path / "kept.json").read_text())) == {"a", "b"}
    told = iter([{"status": "measured", "tokens_per_second": 1.0}])
    second = Runs(tmp_path / "kept.json", resume=True, limit_seconds=60.0)
    assert second.run("a", "worker", {})["status"] == "missing"
    assert second.run("b", "worker", {})["status"] == "measured"


def test_no_process_is_started_when_the_time_is_up(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "kept.json", resume=False, limit_seconds=60.0, total_seconds=0.0)
    assert runs.run("a", "worker", {})["status"] == "not run"


@pytest.mark.parametrize("shape", [*SHAPES.values(), *QUICK.values()])
def test_steps_are_whole_microbatches_and_sum_up_gradients(shape: Any) -> None:
    for size in shape.micro_batch_sizes:
        assert shape.sequences_per_step % size == 0 and shape.sequences_per_step // size >= 2


def test_a_task_survives_its_file() -> None:
    task = Task(contender="ours", model="7b", shape=SHAPES["7b"], micro_batch_size=2, options={"precision": "bf16"})
    assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task
