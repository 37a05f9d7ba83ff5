"""Plans of runs on hundreds of ranks, against counts made tensor by tensor, real forwards and the real optimizer.

What needs Megatron-core runs once, in a process of its own: importing it takes longer than all the rest.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pretrain.config.load import compose
from pretrain.engine.layout import ParallelLayout
from pretrain.model.spec import ModelSpec
from pretrain.plan.__main__ import main
from pretrain.plan.memory import activation_bytes, chunks_in_flight
from tests.unit.config.test_recipes import RECIPES
from tests.unit.plan.cases import COVERED, FORWARDS, ONE_MICROBATCH, OPTIMIZERS, small, spec_of


def _count(spec: ModelSpec, *, layers: int, tensor: int, embedding: bool, output: bool) -> int:
    """Elements of a rank, one tensor at a time, as the rows or columns it holds."""
    width, groups, heads = spec.hidden_size, spec.num_query_groups // tensor, spec.num_attention_heads // tensor
    layer = [
        (heads * spec.head_dim, width),
        (groups * spec.head_dim, width),
        (groups * spec.head_dim, width),
        (width, heads * spec.head_dim),
        (spec.ffn_hidden_size // tensor, width),
        (spec.ffn_hidden_size // tensor, width),
        (width, spec.ffn_hidden_size // tensor),
        (width, 1),
        (width, 1),
    ]
    shapes = layers * layer
    shapes += [(spec.padded_vocab_size // tensor, width)] * (embedding + output)
    shapes += [(width, 1)] * output
    return sum(rows * columns for rows, columns in shapes)


def _stages(plan: dict[str, Any], layers: int) -> None:
    """Every built rank has what a count by hand gives for its stage."""
    spec = ModelSpec.from_dict(plan["model"])
    last = plan["layout"]["pipeline"] - 1
    for rank in plan["ranks"]:
        stage = rank["at"]["pipeline"]
        expected = _count(
            spec, layers=layers, tensor=plan["layout"]["tensor"], embedding=stage == 0, output=stage == last
        )
        assert rank["parameters"] == expected and rank["layers"] == layers


def test_the_7b_on_224_ranks_is_planned_from_the_command_line(measured: dict[str, Any]) -> None:
    code, printed, plan = measured["lines"][0]
    assert code == 0
    assert "6,738,415,616" in printed and "1 of 1 different shards" in printed
    assert plan["covered"] and [rank["rank"] for rank in plan["ranks"]] == [0]
    _stages(plan, layers=32)
    assert plan["tokens_per_step"] == 2240 * 2048 and plan["tokens"] == 274_320 * 2240 * 2048
    assert plan["storage"]["saves"] == 361  # the initial model and 360 chunks
    assert plan["storage"]["checkpoint_bytes"] == 12 * 6_738_415_616
    assert plan["flops_per_token"]["matmul"] == 6 * (6_738_415_616 - 32000 * 4096 - 65 * 4096)


def test_on_a_known_device_time_probes_and_layouts_are_said(measured: dict[str, Any]) -> None:
    _, printed, plan = measured["lines"][0]
    device = plan["device"]
    throughput = device["throughput"]
    assert device["fits"] and "GiB to spare" in printed and "modelled, not measured" in printed
    assert sum(throughput["parts"].values()) == pytest.approx(throughput["step_seconds"])
    assert throughput["tokens_per_second"] * throughput["step_seconds"] == pytest.approx(2240 * 2048)
    assert device["days"] == pytest.approx(274_320 * throughput["step_seconds"] / 86_400)
    assert device["needed_bytes"] == plan["ranks"][0]["memory_bytes"]["total"]
    assert device["probe"]["full_saves"] == 361 and "truthfulqa_mc2" in printed
    assert len(device["layouts"]) == 5
    for option in device["layouts"]:
        assert " ".join(option["overrides"]) in printed


def test_without_a_device_a_line_says_how_to_get_the_rest(measured: dict[str, Any]) -> None:
    code, printed, plan = measured["lines"][2]
    assert code == 0 and plan["device"] is None
    assert printed.endswith("need a device: add cluster=a100_80gb, h100, … (configs/cluster).\n")
    assert "Tokens a second" not in printed and "On the device" not in printed
    # 1050 steps of 8 x 256 tokens at Amber's shares, which add up to 99.99.
    epochs = {"qa": 1050 * 2048 * 1.73 / 99.99 / 5000, "web": 1050 * 2048 * 68.51 / 99.99 / 1_000_000}
    assert plan["epochs"] == pytest.approx(epochs)
    assert f"qa is read {epochs['qa']:.1f} times: after 4" in printed and "web is read" not in printed


def test_the_65b_on_480_ranks_is_planned_stage_by_stage(measured: dict[str, Any]) -> None:
    code, printed, plan = measured["lines"][1]
    assert [(rank["rank"], rank["parameters"]) for rank in plan["ranks"]] == [
        (0, 2_056_847_360),
        (240, 2_024_079_360),
        (360, 2_056_855_552),
    ]
    _stages(plan, layers=20)
    assert plan["parameters"] == 65_285_660_672
    first, middle, last = (rank["memory_bytes"] for rank in plan["ranks"])
    assert first["activations"] > middle["activations"] > last["activations"]  # 4, 2 and 1 microbatches in flight
    assert first["momentary"] == middle["momentary"] < last["momentary"]  # the loss
    assert code == 1 and not plan["device"]["fits"]
    assert "DOES NOT FIT" in printed
    best = plan["device"]["layouts"][0]
    assert f"The fastest that fits: {' '.join(best['overrides'])}\n" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=amber_7b", "world_size=225"], "train.global_batch_size=2240 must be a multiple"),
        (["experiment=amber_7b", "rank=224"], "rank 224 is not in 0 … 223"),
        (["experiment=amber_7b", "world_size=many"], "world_size=many is not valid"),
        (["experiment=amber7b", "world_size=8"], "Did you mean amber_7b?"),
    ],
)
def test_a_run_that_cannot_start_is_refused_without_a_traceback(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err


def test_shards_of_the_7b_have_the_parameters_counted_by_hand(measured: dict[str, Any]) -> None:
    spec = spec_of(compose(["experiment=amber_7b"]))
    first, middle, last = (
        _count(spec, layers=8, tensor=8, embedding=stage == 0, output=stage == 3) for stage in (0, 1, 3)
    )
    for world_size in (224, 4096):
        assert measured["7b"][world_size] == [first, middle, last] == [218_824_704, 202_440_704, 218_828_800]


@pytest.mark.parametrize("case", range(len(COVERED)))
def test_all_shards_together_hold_each_element_once(measured: dict[str, Any], case: int) -> None:
    overrides, _ = COVERED[case]
    spec = spec_of(small(overrides))
    tables = 1 if spec.tie_embeddings else 2
    covered, owned = measured["covered"][case]
    assert covered
    assert owned == spec.num_parameters + tables * (384 - 300) * 64


def test_a_missing_doubled_or_foreign_shard_is_noticed(measured: dict[str, Any]) -> None:
    missing, doubled, foreign = measured["faults"]
    assert missing is False
    assert "The shards of all ranks are not the model" in doubled
    assert foreign.startswith("Rank 0 has ") and "by the sizes of the model" in foreign


@pytest.mark.parametrize("case", range(len(FORWARDS)))
def test_activations_are_what_a_real_forward_keeps(measured: dict[str, Any], case: int) -> None:
    overrides, world_size, rank = FORWARDS[case]
    config = small((*overrides, *ONE_MICROBATCH))
    spec, layout = spec_of(config), ParallelLayout.create(config, world_size=world_size)
    stage = layout.coordinates(rank).pipeline
    kept = activation_bytes(config, spec, layout, stage=stage)
    if stage == layout.pipeline - 1 and config.kernels.loss != "chunked":
        # Of the whole loss backward needs the softmax, in fp32.
        kept += 4 * 8 * 32 // layout.context * spec.padded_vocab_size // layout.tensor
    # Left out of the formula: reciprocal norms, token ids, masks of the loss, angles of rotation: below 2% here.
    assert measured["forwards"][case] == pytest.approx(kept, rel=0.02)


@pytest.mark.parametrize("case", range(len(OPTIMIZERS)))
def test_weights_gradients_and_optimizer_take_what_the_engine_takes(measured: dict[str, Any], case: int) -> None:
    planned, real = measured["optimizers"][case]
    # Megatron fills its buffers up to multiples of 128 elements a rank.
    assert real == pytest.approx(planned, rel=0.03)


def test_stages_wait_for_as_many_backwards_as_the_schedules_say() -> None:
    layout = dataclasses.replace(
        ParallelLayout.create(compose(["experiment=k2_65b"]), world_size=480), num_microbatches=34
    )
    assert [chunks_in_flight(layout, stage=stage) for stage in range(4)] == [4, 3, 2, 1]
    two = dataclasses.replace(layout, num_microbatches=2)
    assert [chunks_in_flight(two, stage=stage) for stage in range(4)] == [2, 2, 2, 1]
    # Korthikanti et al. 2022, section 4.2.3: L (1 + (p - 1) / (p m)) layers on the first stage.
    interleaved = dataclasses.replace(layout, virtual_pipeline=5)
    layers = chunks_in_flight(interleaved, stage=0) * 80 // (4 * 5)
    assert layers == 80 * (1 + 3 / (4 * 5))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_planned_on_its_own_cluster_and_fits(name: str, measured: dict[str, Any]) -> None:
    _, parameters, _, steps, _ = RECIPES[name]
    assert measured["recipes"][name] == (parameters, steps, True)


def test_a_page_names_the_kernels_that_it_counts_with(measured: dict[str, Any]) -> None:
    (_, on_gpu, plan), (_, plain, _), (_, unknown, _) = measured["lines"]
    fused = "layers=fused loss=chunked weight_gradients=accumulated optimizer=fused compile=true"
    assert (
        f"Memory and time are those of {fused},\n  which the configuration's kernels select on this device.\n" in on_gpu
    )
    assert "layers=plain loss=whole weight_gradients=plain optimizer=plain compile=false" in plain
    assert "layers=plain" in unknown and "select on a CPU, since cluster.device is null.\n" in unknown
    assert plan["kernels"]["layers"] == "fused" and not plan["keeps_scores"]
