"""Memory and time of one plan are of the same kernels: those that the configuration comes to on the planned device."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pretrain.config.load import compose
from pretrain.engine.kernels import choose, planned
from pretrain.engine.layout import ParallelLayout
from pretrain.plan.memory import Memory, fullest
from pretrain.plan.throughput import Throughput, predict
from pretrain.plan.workload import FUSED, Workload, workload_of
from tests.support.ranks import environment
from tests.unit.plan.cases import spec_of

GPU = ["experiment=amber_7b"]
"""On A100s."""


def plan(*overrides: str) -> tuple[Memory, Workload, Throughput]:
    config = compose([*GPU, *overrides])
    spec, layout = spec_of(config), ParallelLayout.create(config, world_size=224)
    work = workload_of(config, spec, layout)
    return fullest(config, spec, layout), work, predict(work, config.cluster)


def test_auto_is_planned_as_what_a_gpu_takes() -> None:
    memory, work, speed = plan()
    assert work.fused == FUSED
    named = ["kernels=fused", "kernels.compile=true"]
    assert plan(*named) == (memory, work, speed)


def test_plain_kernels_are_slower_and_need_more() -> None:
    fast, plain = plan("engine.recompute=none"), plan("engine.recompute=none", "kernels=plain")
    assert plain[1].fused == ()
    assert plain[0].activations > fast[0].activations and plain[0].momentary > fast[0].momentary
    assert plain[2].tokens_per_second < fast[2].tokens_per_second


PARTS = {
    "kernels.layers=plain": ("layers", {"elementwise"}, {"activations"}),
    "kernels.loss=whole": ("loss", {"loss"}, {"activations", "momentary"}),
    "kernels.weight_gradients=plain": ("gradients", {"optimizer"}, {"momentary"}),
    "kernels.optimizer=plain": ("optimizer", {"optimizer"}, set()),
}
"""A choice, the part that it leaves unfused, the seconds that this adds to and the bytes that it changes.

The optimizer's are gone before the fullest moment: `tests/unit/engine/test_footprint.py` has them.
"""


@pytest.mark.parametrize("choice", PARTS)
def test_each_choice_reaches_memory_and_time(choice: str) -> None:
    part, slower, larger = PARTS[choice]
    (memory, work, speed), (other_memory, other_work, other_speed) = (
        plan("engine.recompute=none", *more) for more in ([], [choice])
    )
    assert set(work.fused) - set(other_work.fused) == {part}
    changed = {name for name, seconds in other_speed.parts.items() if seconds != speed.parts[name]}
    assert changed - {"data", "bubble"} == slower  # what hides a collective changes how much of it shows
    assert all(other_speed.parts[name] > speed.parts[name] for name in slower)
    fields = ("weights", "gradients", "optimizer", "buffers", "activations", "momentary")
    assert {name for name in fields if getattr(memory, name) != getattr(other_memory, name)} == larger


def test_recomputing_norms_and_swiglu_is_elementwise_work_and_not_attention() -> None:
    fused, plain = (plan("engine.recompute=selective", *more)[1] for more in ([], ["kernels=plain"]))
    assert (fused.recompute, plain.recompute) == ("elementwise", "selective")


def test_attention_that_keeps_scores_is_planned_with_them() -> None:
    (memory, work, speed), (other_memory, other_work, other_speed) = (
        plan("engine.recompute=none", "train.micro_batch_size=1", f"kernels.attention={name}")
        for name in ("flash", "math")
    )
    assert (work.scores, other_work.scores) == (False, True)
    assert other_memory.activations - memory.activations == 32 * 4 * 32 * 2048 * 2048  # layers, fp32, heads, pairs
    assert other_speed.tokens_per_second < speed.tokens_per_second


@pytest.mark.parametrize("engine", ["megatron", "deepspeed_zero1"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kernels", ["auto", "fused", "plain"])
def test_without_a_device_the_plan_is_of_this_very_cpu(engine: str, precision: str, kernels: str) -> None:
    config = compose(["experiment=demo", f"engine={engine}", f"precision={precision}", f"kernels={kernels}"])
    assert planned(config) == choose(config, torch.device("cpu"))


def test_memory_time_and_layouts_are_answered_without_torch() -> None:
    """A login node may have none."""
    code = """
import sys
sys.modules["torch"] = None
from pretrain.config.load import compose
from pretrain.engine.layout import ParallelLayout
from pretrain.model.spec import ModelSpec
from pretrain.plan.layouts import suggest
from pretrain.plan.memory import fullest
from pretrain.plan.throughput import predict, workload_of
for engine in ("megatron", "deepspeed_zero3"):
    config = compose(["experiment=amber_7b", f"engine={engine}", "train.global_batch_size=80"])
    spec, layout = ModelSpec.from_config(config.model, 32000), ParallelLayout.create(config, world_size=8)
    assert fullest(config, spec, layout).total > 0
    assert predict(workload_of(config, spec, layout), config.cluster).tokens_per_second > 0
    assert suggest(config, spec, world_size=8, count=1)
"""
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)
