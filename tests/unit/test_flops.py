"""FLOPs per token against published and hand-computed values, and MFU against two published figures."""

from __future__ import annotations

import pytest

from pretrain.config.model import ModelConfig
from pretrain.flops import flops_per_token, matmul_parameters, mfu, peak_flops_per_second

LLAMA_7B = ModelConfig()
LLAMA_1B = ModelConfig(num_layers=24, hidden_size=2048, ffn_hidden_size=5504, num_attention_heads=16)
LLAMA3_8B = ModelConfig(hidden_size=4096, ffn_hidden_size=14336, num_attention_heads=32, num_query_groups=8)


@pytest.mark.parametrize(
    ("model", "gigaflops"), [(LLAMA_7B, (42.86, 41.25, 39.64)), (LLAMA_1B, (8.887, 8.283, 7.679))], ids=["7B", "1.3B"]
)
def test_the_three_definitions_give_their_known_values(model: ModelConfig, gigaflops: tuple[float, ...]) -> None:
    counts = flops_per_token(model, vocab_size=32_000, sequence_length=2048)
    found = [value / 1e9 for value in (counts.full_attention, counts.causal, counts.matmul)]
    assert found == pytest.approx(gigaflops, rel=2e-4)  # the known values have four digits


def test_matmul_parameters_are_all_but_norms_and_input_embedding() -> None:
    norms = (2 * 32 + 1) * 4096
    assert matmul_parameters(LLAMA_7B, vocab_size=32_000) == 6_738_415_616 - norms - 32_000 * 4096


def test_llama3_at_8192_matches_what_torchtitan_and_nemo_count() -> None:
    """57.9 GFLOP per token give torchtitan's 39.0% at 6,667 tokens/s; 51.5 give NeMo's 744 TFLOP/s at 14,451."""
    counts = flops_per_token(LLAMA3_8B, vocab_size=128_256, sequence_length=8192)
    share = mfu(6667, counts.full_attention, num_devices=1, device_name="NVIDIA H100 80GB HBM3")
    assert share == pytest.approx(0.390, abs=5e-4)
    assert 14_451 * counts.causal == pytest.approx(744e12, rel=1e-3)


def test_shared_embeddings_still_cost_the_output_product() -> None:
    tied = ModelConfig(tie_embeddings=True)
    assert matmul_parameters(tied, vocab_size=32_000) == matmul_parameters(LLAMA_7B, vocab_size=32_000)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("cpu", None),
    ],
)
def test_peaks_are_found_by_the_drivers_names(name: str, peak: float | None) -> None:
    assert peak_flops_per_second(name) == peak


def test_mfu_is_unknown_where_the_peak_is_and_a_share_of_all_devices_where_it_is_known() -> None:
    assert mfu(1000.0, 1e9, num_devices=2, device_name="cpu") is None
    assert mfu(989.0, 1e12, num_devices=2, device_name="NVIDIA H200") == pytest.approx(0.5)
