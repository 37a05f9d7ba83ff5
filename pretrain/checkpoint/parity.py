"""The gate before an export: its own files, read by transformers' own code, must say what the live model said.

Its tokenizer files are held against the tokenizer of training in `tokenizer_parity.py`.

The one place that imports transformers, and only when called. The model is built without memory; each layer gets
its weights from the files when the forward reaches it and loses them after, so that one layer is held at a time.
Everything is on the CPU in fp32 and touches no state that other threads see: training goes on beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pretrain.checkpoint.huggingface_source import HuggingFaceSource
from pretrain.checkpoint.reference import Reference, prompts, targets
from pretrain.errors import CheckpointError
from pretrain.model.spec import ModelSpec

# Share of the spread of log-probabilities (largest less smallest of the reference) that rounding may cost at the
# worst of 4,096 places. Measured: fp32 against fp32 3e-7 in every layout and bf16 against fp32 0.8 %
# (tests/parity/test_export.py); bf16 0.4 % for 4 layers to 1.1 % for 16 with logits as large as a trained model's.
# tf32 rounds inputs of products only, and to two bits more.
_SHARE = {"fp32": 1e-5, "tf32": 1e-2, "bf16": 3e-2}


@dataclass(frozen=True, slots=True)
class Parity:
    """How far an export is from the live model.

    Attributes:
        largest_difference: of log-probability, in nats, over all positions and targets.
        tolerance: what was allowed.
        num_positions: positions of the fixed prompts.
        compute: number format the live model computed in.
    """

    largest_difference: float
    tolerance: float
    num_positions: int
    compute: str

    def __str__(self) -> str:
        """One clause, for the model card and the command line."""
        return (
            f"largest difference of log-probability against the live model ({self.compute} compute) on "
            f"{self.num_positions} positions: {self.largest_difference:.2g} nats"
        )


def measure_parity(
    folder: Path, spec: ModelSpec, reference: Reference, *, dtype: str, tolerance: float | None = None
) -> Parity:
    """Compares the files in `folder` with what the live model said.

    Args:
        folder: a complete Hugging Face folder, tokenizer aside.
        spec: the model it must be.
        reference: the live model's answers, of the present version.
        dtype: of the files.
        tolerance: largest difference allowed, in nats; None goes by precision and spread (see `allowed_difference`).

    Raises:
        CheckpointError: the difference is larger, or not a number, or the files are not this model's.
    """
    expected_BST = reference.log_prob_BST
    found_BSV = export_log_probs(folder, spec, prompts(spec.vocab_size))
    target_BST = targets(spec.vocab_size)
    difference_BST = np.abs(np.take_along_axis(found_BSV, target_BST, -1) - expected_BST)
    worst = np.unravel_index(np.argmax(difference_BST), difference_BST.shape)  # NaN is the largest to argmax
    largest = float(difference_BST[worst])
    allowed = allowed_difference(reference, dtype) if tolerance is None else tolerance
    if not largest <= allowed:  # NaN too
        prompt, position, _ = worst
        raise CheckpointError(
            f"the log-probability of token {target_BST[worst]} at position {position} of fixed prompt {prompt} is "
            f"{expected_BST[worst]:.6g} in the live model ({reference.compute} compute) and {largest:.3g} nats off in "
            f"the {dtype} files; {allowed:.3g} are allowed (checkpoint.export_tolerance, --tolerance). If rounding "
            f"explains that, allow more; otherwise the translation is wrong, or the weights are not finite."
        )
    return Parity(largest, allowed, difference_BST[..., 0].size, reference.compute)


def allowed_difference(reference: Reference, dtype: str) -> float:
    """Largest difference that rounding explains, in nats: it grows with the logits, so with their spread.

    Args:
        reference: the live model's answers.
        dtype: of the files; bfloat16 rounds as bf16 compute does.
    """
    expected_BST = reference.log_prob_BST
    coarsest = max(_SHARE[reference.compute], _SHARE["bf16"] if dtype == "bfloat16" else 0.0)
    return coarsest * max(1.0, float(expected_BST.max() - expected_BST.min()))


def export_log_probs(folder: Path, spec: ModelSpec, tokens_BS: np.ndarray) -> np.ndarray:
    """Log-probabilities of the next token by `LlamaForCausalLM` as it loads the folder, one layer in memory at a time.

    Args:
        folder: a Hugging Face folder.
        spec: the model it must be.
        tokens_BS: token ids; every row starts at position 0.

    Returns:
        float64 [B, S, V], computed in fp32 on the CPU.

    Raises:
        CheckpointError: the folder holds another model, lacks a tensor, or has one of another shape.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    source = HuggingFaceSource(folder, spec)
    config = LlamaConfig.from_pretrained(folder)
    with _WithoutMemory():
        model = LlamaForCausalLM(config).eval()
    assert all(p.is_meta for p in model.parameters()), "transformers makes weights by a factory not known here"
    renamed = {"lm_head.weight": "model.embed_tokens.weight"} if config.tie_word_embeddings else {}

    def get(name: str) -> Tensor:
        return source.weight(renamed.get(name, name))

    inner = model.model
    units = {"model.embed_tokens": inner.embed_tokens, "model.norm": inner.norm, "lm_head": model.lm_head}
    units |= {f"model.layers.{index}": layer for index, layer in enumerate(inner.layers)}
    for name, unit in units.items():
        unit.register_forward_pre_hook(_filling(name, get))
        unit.register_forward_hook(_emptying)
    with torch.no_grad():
        logits_BSV = model(torch.from_numpy(tokens_BS), use_cache=False).logits
    return logits_BSV.double().log_softmax(-1).numpy()


def export_token_ids(folder: Path, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts by `AutoTokenizer` as it loads the folder, without those that it adds to every text.

    Args:
        folder: a folder with tokenizer files.
        texts: none of them empty.

    Raises:
        CheckpointError: transformers cannot read the files.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        # One by one: a batch would start threads, about which `tokenizers` warns whenever the process forks.
        ids: list[list[int]] = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    except Exception as error:  # noqa: BLE001 - whatever transformers and tokenizers raise of files they cannot read
        raise CheckpointError(f"transformers cannot read the tokenizer files in {folder}: {error!r}.") from error
    return ids


class _WithoutMemory(TorchFunctionMode):
    """Weights made inside live on the meta device, on this thread alone; constants (rotary frequencies) are real.

    Not `torch.device("meta")`: entering that sets a variable of all threads, which compiled functions guard on. By
    name, because the CPU seam (`pretrain.engine.device`) stands in front of the factories.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("empty", "ones", "zeros") and kwargs.get("device") is None:
            kwargs["device"] = torch.device("meta")
        return func(*args, **kwargs)


def _filling(name: str, get: Callable[[str], Tensor]) -> Callable[[nn.Module, Any], None]:
    def fill(module: nn.Module, _: Any) -> None:
        weights = {key: get(f"{name}.{key}") for key, _ in module.named_parameters()}
        try:
            module.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise CheckpointError(f"transformers does not accept the weights of {name}: {error}") from error

    return fill


def _emptying(module: nn.Module, _: Any, __: Any) -> None:
    module.to("meta")
