"""What a published folder must say of its vocabulary, read from its files: no rows that training's padding added.

The other gates: log-probabilities of the live model are `parity.py`, finite weights are looked at while they are
written (`huggingface.py`), and digests are `digests.py`.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from pretrain.checkpoint.huggingface_config import CONFIG_NAME
from pretrain.checkpoint.huggingface_source import json_object
from pretrain.checkpoint.tokenizer_files import read_sentencepiece
from pretrain.errors import CheckpointError, TokenizerError

_ROWS_ARE_PIECES = ("model.embed_tokens.weight", "lm_head.weight")


def vocabulary_problem(folder: Path, *, num_pieces: int | None = None) -> str | None:
    """Compares pieces of the tokenizer, `vocab_size`, and rows of embedding and head.

    Args:
        folder: a Hugging Face folder with its weights as safetensors.
        num_pieces: of the tokenizer; None reads `tokenizer.model`.

    Returns:
        What is wrong; None where all are the same number.
    """
    try:
        found = {f"{CONFIG_NAME}: vocab_size": json_object(folder / CONFIG_NAME).get("vocab_size")}
        pieces = len(read_sentencepiece(folder / "tokenizer.model").pieces) if num_pieces is None else num_pieces
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                names = set(file.keys()) & set(_ROWS_ARE_PIECES)
                found |= {f"{path.name}: rows of {name}": file.get_slice(name).get_shape()[0] for name in names}
    except (CheckpointError, TokenizerError, OSError, SafetensorError) as error:
        return str(error)
    if not any(_ROWS_ARE_PIECES[0] in place for place in found):
        return f"{folder} has no {_ROWS_ARE_PIECES[0]}"
    wrong = [f"{place} is {value}" for place, value in found.items() if value != pieces]
    return f"{'; '.join(wrong)}, but the tokenizer has {pieces} pieces" if wrong else None
