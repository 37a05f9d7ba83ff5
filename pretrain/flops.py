"""Training FLOPs per token by the three definitions in use, and what share of a device's peak they are.

The same run reads up to 16% higher under one convention than under another (1.3B parameters, 2,048 tokens), so every
figure says which it is. Only matrix products count; N is their parameters: output layer yes, input embedding no.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.config.model import ModelConfig

# Dense bf16 peaks in FLOP/s, most specific name first. H100 variants as in torchtitan's get_peak_flops.
_BF16_PEAKS = (
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("A100", 312e12),
)


@dataclass(frozen=True, slots=True)
class FlopsPerToken:
    """Forward and backward FLOPs of one token.

    Attributes:
        full_attention: 6 N + 12 L H S, attention counted without its causal mask (PaLM, torchtitan, llm-foundry).
        causal: 6 N + 6 L H S, half of attention masked (Megatron-LM, NeMo).
        matmul: 6 N, attention scores left out (Amber, OpenLLaMA); what `flops` of metrics and measurements is made of.
    """

    full_attention: float
    causal: float
    matmul: float


def matmul_parameters(model: ModelConfig, *, vocab_size: int) -> int:
    """Parameters that take part in matrix products: N of the definitions.

    Args:
        model: the sizes.
        vocab_size: rows of the output layer, without padding.
    """
    hidden = model.hidden_size
    groups = model.num_query_groups or model.num_attention_heads
    key_value = hidden // model.num_attention_heads * groups
    attention = 2 * hidden * hidden + 2 * hidden * key_value
    feed_forward = 3 * hidden * model.ffn_hidden_size
    return model.num_layers * (attention + feed_forward) + vocab_size * hidden


def flops_per_token(model: ModelConfig, *, vocab_size: int, sequence_length: int) -> FlopsPerToken:
    """The three counts for one model and sequence length, in FLOPs."""
    matmul = 6.0 * matmul_parameters(model, vocab_size=vocab_size)
    attention = float(model.num_layers * model.hidden_size * sequence_length)
    return FlopsPerToken(full_attention=matmul + 12 * attention, causal=matmul + 6 * attention, matmul=matmul)


def peak_flops_per_second(device_name: str) -> float | None:
    """Dense bf16 peak of a device by the name its driver gives, in FLOP/s; None where it is not known (CPUs)."""
    for name, peak in _BF16_PEAKS:
        if name.lower() in device_name.lower():
            return peak
    return None


def mfu(tokens_per_second: float, flops_per_token: float, *, num_devices: int, device_name: str) -> float | None:
    """Share of the devices' bf16 peak spent on model FLOPs, 0 to 1; None when the peak is unknown.

    Args:
        tokens_per_second: of the whole job.
        flops_per_token: one of the definitions; say which beside the figure.
        num_devices: devices of the job.
        device_name: as `torch.cuda.get_device_name` gives it.
    """
    peak = peak_flops_per_second(device_name)
    return None if peak is None else tokens_per_second * flops_per_token / (num_devices * peak)
