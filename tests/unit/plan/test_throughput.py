"""The model of throughput: closed forms, directions, and the published figures that it was not fitted to."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from pretrain.config.cluster import ClusterConfig
from pretrain.config.load import compose
from pretrain.engine.layout import ParallelLayout
from pretrain.errors import ConfigError
from pretrain.flops import flops_per_token
from pretrain.model.spec import ModelSpec
from pretrain.plan.links import OVERLAP_COST, Links, exposed
from pretrain.plan.throughput import Shape, Workload, predict, workload_of
from tests.bench.plan_throughput import LIMIT, measure, readme
from tests.bench.published.throughput import PublishedRow, published_rows

ROOT = Path(__file__).parents[3]
SHAPE = Shape(
    num_layers=32,
    hidden_size=4096,
    ffn_hidden_size=11008,
    num_attention_heads=32,
    num_query_groups=32,
    vocab_size=32000,
)
ONE = Workload(shape=SHAPE, sequence_length=2048, micro_batch_size=4, num_microbatches=8)
DEVICE = ClusterConfig(
    nodes=8,
    processes_per_node=8,
    device="a round one",
    peak_teraflops=1000.0,
    fp32_teraflops=100.0,
    matmul_share=0.5,
    attention_share=0.25,
    memory_gigabytes_per_second=4000.0,
    memory_share=0.5,
    link_gigabytes_per_second=400.0,
    link_share=0.5,
    network_gigabits_per_second=400.0,
    network_share=0.5,
    network_latency_microseconds=10.0,
    host_gigabytes_per_second=50.0,
    host_memory_gigabytes_per_second=50.0,
)


def change(**values: object) -> Workload:
    return dataclasses.replace(ONE, **values)  # type: ignore[arg-type]


def on(**values: object) -> ClusterConfig:
    return dataclasses.replace(DEVICE, **values)  # type: ignore[arg-type]


def test_one_device_takes_what_a_hand_calculation_says() -> None:
    parts = predict(change(num_microbatches=1, sharding="none"), DEVICE).parts
    tokens, memory = 4 * 2048, 2e12
    weights = 4 * 4096**2 + 3 * 4096 * 11008
    # Three products for each of q, k, v, output, gate, up, down; weights and operands through memory once in each.
    operands = weights + tokens * (4 * 4096 + 4 * 4096 + 3 * 11008)
    assert parts["matmul"] == pytest.approx(32 * 3 * (2 * weights * tokens / 500e12 + 2 * operands / memory))
    # Scores and values: 2 products of 2 H S / 2 FLOPs a token, and five of them in backward.
    assert parts["attention"] == pytest.approx(32 * 7 * tokens * 4096 * 2048 / 250e12)
    # 16 H of norms and residuals, 4 (Q + K) of the rotation, 8 F of SwiGLU, in bf16.
    assert parts["elementwise"] == pytest.approx(32 * 2 * tokens * (16 * 4096 + 4 * 8192 + 8 * 11008) / memory)
    logits = 3 * (2 * 32000 * 4096 * tokens / 500e12 + 2 * (tokens * (4096 + 32000) + 32000 * 4096) / memory)
    assert parts["loss"] == pytest.approx(logits + 16 * tokens * 32000 / memory)
    assert parts["optimizer"] == pytest.approx((32 * weights + 32000 * 4096) * (34 + 6) / memory)
    assert {name for name, seconds in parts.items() if seconds} == {
        "matmul",
        "attention",
        "elementwise",
        "loss",
        "optimizer",
    }


def test_parts_sum_up_to_the_step_and_tokens_follow() -> None:
    work = change(data=4, tensor=8, pipeline=2, sequence_parallel=True, recompute="full", optimizer_on_cpu=True)
    found = predict(work, DEVICE)
    assert found.step_seconds == pytest.approx(math.fsum(found.parts.values()))
    assert found.tokens_per_second == pytest.approx(4 * 8 * 4 * 2048 / found.step_seconds)
    assert work.devices == 64


def test_mfu_is_that_of_the_definitions_in_use() -> None:
    config = compose(["experiment=amber_7b"])
    spec = ModelSpec.from_config(config.model, 32000)
    layout = ParallelLayout.create(config, world_size=224)
    found = predict(workload_of(config, spec, layout), DEVICE)
    flops = flops_per_token(config.model, vocab_size=32000, sequence_length=2048)
    per_device = found.tokens_per_second / 224
    assert found.mfu_full_attention == pytest.approx(per_device * flops.full_attention / 1000e12)
    assert found.mfu_causal == pytest.approx(per_device * flops.causal / 1000e12)


@pytest.mark.parametrize(("pipeline", "chunks", "microbatches"), [(2, 1, 8), (4, 1, 16), (4, 2, 16), (8, 4, 32)])
def test_the_bubble_is_p_minus_1_over_m_v_of_the_work(pipeline: int, chunks: int, microbatches: int) -> None:
    work = change(pipeline=pipeline, virtual_pipeline=chunks, num_microbatches=microbatches)
    parts = predict(work, DEVICE).parts
    kinds = ("matmul", "attention", "elementwise", "recompute", "tensor", "context", "pipeline")
    share = parts["bubble"] / sum(parts[name] for name in kinds)
    assert share == pytest.approx((pipeline - 1) / (microbatches * chunks))


def test_the_last_stage_makes_the_others_wait_for_its_loss() -> None:
    whole, split = predict(ONE, DEVICE).parts, predict(change(pipeline=4), DEVICE).parts
    assert split["loss"] == pytest.approx(whole["loss"])
    assert split["matmul"] == pytest.approx(whole["matmul"] / 4)


def test_recomputing_everything_costs_another_forward() -> None:
    none, full = predict(ONE, DEVICE).parts, predict(change(recompute="full"), DEVICE).parts
    forward = (
        none["matmul"] / 3
        + none["attention"] / 3.5
        + none["elementwise"] * (8 * 4096 + 2 * 8192 + 3 * 11008) / (16 * 4096 + 4 * 8192 + 8 * 11008)
    )
    assert full["recompute"] == pytest.approx(forward)
    assert predict(change(recompute="selective"), DEVICE).parts["recompute"] == pytest.approx(none["attention"] / 3.5)


def test_rings_move_their_bytes_once_through_every_rank() -> None:
    links = Links(DEVICE, ONE)
    link, network = 200e9, 25e9
    assert links.ring(1, 1, 1e9) == 0
    assert links.ring(8, 1, 1e9) == pytest.approx(7 / 8 * 1e9 / link)
    # Eight ranks a machine share its adapters: as fast as the link, and seven steps between eight machines.
    assert links.ring(64, 1, 1e9) == pytest.approx(63 / 64 * 1e9 / link + 7 * 10e-6)
    # One rank a machine, the others being tensor-parallel: its own adapter.
    assert links.ring(8, 8, 1e9) == pytest.approx(7 / 8 * 1e9 / network + 7 * 10e-6)
    assert links.ring(16, 1, 1e9, pieces=32) - links.ring(16, 1, 1e9) == pytest.approx(31 * 10e-6)


def test_what_computation_hides_costs_a_share_and_what_it_cannot_hide_all() -> None:
    assert exposed(1.0, beside=10.0) == pytest.approx(OVERLAP_COST)
    assert exposed(10.0, beside=1.0) == pytest.approx(9.0)
    assert exposed(3.0, beside=0.0) == 3.0


def test_twice_the_bandwidth_takes_half_the_time_where_nothing_hides_it() -> None:
    slow = change(data=4, tensor=8, overlap_data=False)
    calm = on(network_latency_microseconds=0.0)
    for part, key in (("tensor", "link_gigabytes_per_second"), ("data", "network_gigabits_per_second")):
        value = getattr(calm, key)
        faster = dataclasses.replace(calm, **{key: 2 * value})
        assert predict(slow, faster).parts[part] == pytest.approx(predict(slow, calm).parts[part] / 2)


BETTER = {
    "peak_teraflops": 1200.0,
    "matmul_share": 0.6,
    "attention_share": 0.3,
    "memory_gigabytes_per_second": 5000.0,
    "link_gigabytes_per_second": 500.0,
    "network_gigabits_per_second": 800.0,
    "host_gigabytes_per_second": 100.0,
}


@pytest.mark.parametrize("key", BETTER)
def test_a_better_machine_is_never_slower(key: str) -> None:
    work = change(data=4, tensor=4, pipeline=4, sharding="parameters", optimizer_on_cpu=True, recompute="full")
    better = on(**{key: BETTER[key]})
    assert predict(work, better).tokens_per_second > predict(work, DEVICE).tokens_per_second


SLOWER = {
    "recomputing": {"recompute": "full"},
    "plain kernels": {"fused": ()},
    "plain norms": {"fused": (), "fused_norm": False},
    "kept scores": {"scores": True},
    "fp32": {"compute": "fp32", "gather_bytes": 4},
    "a masked attention": {"masked": True},
    "the optimizer on the host": {"optimizer_on_cpu": True},
    "no overlap": {"overlap_data": False},
}


@pytest.mark.parametrize("what", SLOWER)
def test_slows_a_run_down(what: str) -> None:
    work = change(data=64)
    assert predict(dataclasses.replace(work, **SLOWER[what]), DEVICE).step_seconds > predict(work, DEVICE).step_seconds


def test_splitting_a_sequence_or_a_layer_scales_as_it_should() -> None:
    long = change(sequence_length=32768, micro_batch_size=1)
    alone, split = predict(long, DEVICE), predict(dataclasses.replace(long, context=4), DEVICE)
    assert split.parts["attention"] == pytest.approx(alone.parts["attention"] / 4)
    assert 0 < split.parts["context"] < split.parts["attention"]
    assert 1 < split.tokens_per_second / alone.tokens_per_second < 4
    plain = predict(change(tensor=4), DEVICE).parts
    sequence = predict(change(tensor=4, sequence_parallel=True), DEVICE).parts
    assert sequence["tensor"] == pytest.approx(plain["tensor"])  # the same bytes, gathered and scattered
    assert sequence["elementwise"] < plain["elementwise"]
    # Across machines tensor parallelism leaves the links.
    slow = on(network_gigabits_per_second=100.0)
    assert predict(change(tensor=16), slow).parts["tensor"] > 2 * predict(change(tensor=8), slow).parts["tensor"]


@pytest.mark.parametrize("count", [1, 4, 64])
def test_sharing_out_more_never_updates_more(count: int) -> None:
    kinds = ("none", "optimizer", "gradients", "parameters")
    seconds = [predict(change(data=count, sharding=kind), DEVICE).parts["optimizer"] for kind in kinds]
    assert seconds == sorted(seconds, reverse=True)


def test_what_was_measured_takes_the_place_of_the_prediction() -> None:
    work = change(data=16)
    found = predict(work, on(tokens_per_second_per_device=1000.0))
    assert found.tokens_per_second == pytest.approx(16000)
    assert found.parts == {"measured": pytest.approx(work.tokens_per_step / 16000)}
    unknown = predict(work, ClusterConfig(tokens_per_second_per_device=1000.0))
    assert unknown.tokens_per_second == pytest.approx(16000)
    assert (unknown.mfu_full_attention, unknown.mfu_causal) == (None, None)


def test_a_machine_that_is_not_described_is_refused_with_what_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.peak_teraflops.*cluster=h100") as caught:
        predict(ONE, ClusterConfig())
    assert "cluster.network_latency_microseconds" in str(caught.value)
    with pytest.raises(ConfigError, match=r"cluster\.host_gigabytes_per_second: null"):
        predict(change(optimizer_on_cpu=True), on(host_gigabytes_per_second=None))
    assert predict(ONE, on(host_gigabytes_per_second=None)).step_seconds > 0


ENGINES = {
    "engine=megatron": ("optimizer", False),
    "engine.distributed_optimizer=false": ("none", False),
    "engine=deepspeed_zero0": ("none", False),
    "engine=deepspeed_zero2": ("gradients", False),
    "engine=deepspeed_zero3": ("parameters", False),
}


@pytest.mark.parametrize("override", ENGINES)
def test_a_workload_says_what_the_engine_shares_out(override: str) -> None:
    extra = ["engine.overlap_param_gather=false"] if "distributed" in override else []
    config = compose(["experiment=amber_7b", override, *extra])
    spec = ModelSpec.from_config(config.model, 32000)
    work = workload_of(config, spec, ParallelLayout.create(config, world_size=224))
    assert (work.sharding, work.optimizer_on_cpu) == ENGINES[override]
    assert (work.devices, work.tokens_per_step) == (224, config.batch_sizes.full_step_tokens)
    assert work.shape == dataclasses.replace(SHAPE, vocab_size=spec.padded_vocab_size)


@pytest.fixture(scope="module")
def published() -> list[PublishedRow]:
    return published_rows()


def name(row: PublishedRow) -> str:
    return f"{row.group}: {row.model} on {row.workload.devices}"


ACCEPTED = {
    "LLM360 Amber: llama_7b on 224",
    "IBM fms-fsdp: llama_7b on 128",
    "IBM fms-fsdp: llama_7b on 96",
    "TinyLlama: tinyllama on 16",
    "torchtitan: llama3_8b on 8",
    "torchtitan: llama3_8b on 128",
    "torchtitan: llama3_70b on 256",
    *(
        f"Narayanan et al. 2021: gpt_{size} on {devices}"
        for size, devices in {
            "1.7b": 32,
            "3.6b": 64,
            "7.5b": 128,
            "18b": 256,
            "39b": 512,
            "76b": 1024,
            "145b": 1536,
            "310b": 1920,
            "530b": 2520,
            "1t": 3072,
        }.items()
    ),
    "Korthikanti et al. 2022: gpt_22b on 8",
    "Korthikanti et al. 2022: gpt_175b on 64",
    "Korthikanti et al. 2022: gpt_530b on 280",
    "Korthikanti et al. 2022: gpt_1t on 512",
}


def test_published_figures_are_predicted_within_15_percent(published: list[PublishedRow]) -> None:
    found = [row for row in published if name(row) in ACCEPTED]
    assert {name(row) for row in found} == ACCEPTED
    for row in found:
        assert row.calibrates is None
        assert row.assumed is None
        error = predict(row.workload, row.cluster).tokens_per_second / row.tokens_per_second - 1
        assert abs(error) <= LIMIT, f"{name(row)}: {error:+.1%}"


def test_of_a_table_that_nobody_chose_from_five_rows_of_six_are_predicted(published: list[PublishedRow]) -> None:
    rows = [row for row in published if row.group.startswith("llm-foundry") and row.calibrates is None]
    assert len(rows) == 207
    errors = [predict(row.workload, row.cluster).tokens_per_second / row.tokens_per_second - 1 for row in rows]
    assert sum(abs(error) <= LIMIT for error in errors) >= len(rows) * 5 / 6


def test_two_rows_set_two_constants_and_nothing_else_is_fitted(published: list[PublishedRow]) -> None:
    """A calibrating row is predicted to the third digit of its constant; the others would not all be."""
    rows = [row for row in published if row.calibrates is not None]
    assert [(row.calibrates, row.cluster.device) for row in rows] == [
        ("matmul_share of the A100", "NVIDIA A100-SXM4-80GB"),
        ("matmul_share of the H100", "NVIDIA H100-SXM5-80GB"),
    ]
    for row in rows:
        assert predict(row.workload, row.cluster).tokens_per_second == pytest.approx(row.tokens_per_second, rel=2e-3)
    shares = {row.cluster.device: row.cluster.matmul_share for row in rows}
    for row in published:  # no row brings a share of its own, but for what a data sheet or a paper says
        assert row.cluster.matmul_share in shares.values()
        assert row.cluster.memory_share == 0.85
        assert (row.cluster.link_share, row.cluster.network_share) == (0.8, 0.8)


def test_readme_result_and_model_agree() -> None:
    figures = json.loads((ROOT / "tests/bench/results/plan_throughput.json").read_text())["figures"]
    now = measure()
    assert [row["predicted"] for row in figures["rows"]] == pytest.approx(
        [row["predicted"] for row in now["rows"]], rel=1e-4
    )
    assert figures["within_15_percent"] == now["within_15_percent"]
    text = (ROOT / "README.md").read_text()
    start, end = "<!-- throughput -->\n", "\n<!-- /throughput -->"
    assert text[text.index(start) + len(start) : text.index(end)] == readme(figures)
