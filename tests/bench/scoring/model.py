"""The model and the tokenizer that `probe_speed` measures with: the same weights for our scorer and for lm-eval's HFLM.

Weights are random and have a wide spread, so that attention is far from uniform and errors show. They lie in a Hugging
Face folder, which transformers writes and each side reads with its own loader.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pretrain.config.model import ModelConfig
from pretrain.config.run import RunConfig
from pretrain.data.documents import Document, Piece, read_piece
from pretrain.data.files import BUNDLED_DIR, find_files
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.tokenizer_training import train_tokenizer
from pretrain.engine.base import CheckpointScorer
from pretrain.model.spec import ModelSpec

VOCAB_SIZE = 32_000
MAX_LENGTH = 2048
_TOKENIZER, _WEIGHTS = "tokenizer.model", "huggingface"


def model_config() -> ModelConfig:
    """22M parameters: 16.4M in the two embeddings, 5.8M in 8 layers with grouped keys."""
    return ModelConfig(
        num_layers=8,
        hidden_size=256,
        ffn_hidden_size=688,
        num_attention_heads=8,
        num_query_groups=4,
        norm_epsilon=1e-5,
        init_std=0.05,
    )


def prepare(folder: Path) -> tuple[Tokenizer, ModelSpec, Path]:
    """Trains the tokenizer on the bundled corpus (half a minute) and writes the model, unless the folder has them.

    Returns:
        Tokenizer, sizes, and the Hugging Face folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _TOKENIZER
    if not path.exists():
        train_on_bundled_text(path, vocab_size=VOCAB_SIZE)
    spec = ModelSpec.from_config(model_config(), VOCAB_SIZE)
    weights = folder / _WEIGHTS
    if not (weights / "tokenizer_config.json").exists():
        _write_model(spec, path, weights)
    return Tokenizer.load(path), spec, weights


def train_on_bundled_text(path: Path, *, vocab_size: int) -> None:
    """A SentencePiece model from the bundled corpus."""
    corpus = find_files([f"{BUNDLED_DIR}/*.jsonl.zst"], key="the bundled corpus")
    items = (item for f in corpus for item in read_piece(Piece(f), text_key="text", max_line_bytes=1 << 25))
    train_tokenizer((item.text for item in items if isinstance(item, Document)), path, vocab_size=vocab_size)


def prepare_model(folder: Path, model: ModelConfig, vocab_size: int) -> ModelSpec:
    """Writes a model of these sizes in bf16, drawn where there is a GPU on it, without tokenizer; gives its sizes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    spec = ModelSpec.from_config(model, vocab_size)
    settings = spec.config_json(sequence_length=MAX_LENGTH, dtype="bfloat16")
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        drawn = LlamaForCausalLM(LlamaConfig(**settings)).bfloat16()
    drawn.save_pretrained(folder)
    return spec


def build_ours(
    spec: ModelSpec, weights: Path, *, model: ModelConfig | None = None, compute: str = "fp32"
) -> CheckpointScorer:
    """Our scorer with the weights of the folder, alone in its job."""
    from pretrain.checkpoint.huggingface_source import HuggingFaceSource
    from pretrain.engine.build import build_scorer
    from pretrain.engine.job import Job

    config = RunConfig(model=model or model_config())
    config.train.sequence_length = MAX_LENGTH
    config.precision.compute = compute
    scorer = build_scorer(config, spec, Job(timeout_minutes=5).device)
    scorer.load(HuggingFaceSource(weights, spec))
    return scorer


def build_peer(weights: Path, *, device: str = "cpu", dtype: str = "float32", tokenizer: Any = None) -> Any:
    """lm-eval's HFLM on the same weights; its logits cache is on, as by default.

    Args:
        weights: the folder.
        device: `cpu` or `cuda`.
        dtype: of the weights.
        tokenizer: None is the folder's.
    """
    from lm_eval.models.huggingface import HFLM

    # By default it would round log-probabilities to the format of the weights.
    options = {"device": device, "dtype": dtype, "softmax_dtype": "float32", "batch_size": 8, "max_length": MAX_LENGTH}
    return HFLM(pretrained=str(weights), tokenizer=tokenizer, **options)


def _write_model(spec: ModelSpec, tokenizer: Path, folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from pretrain.checkpoint.tokenizer_files import write_tokenizer_files

    torch.manual_seed(0)
    settings = spec.config_json(sequence_length=MAX_LENGTH, bos_token_id=1, eos_token_id=2)
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(folder)
    write_tokenizer_files(tokenizer, folder, add_bos=False)
