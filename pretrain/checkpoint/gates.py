"""What a folder says of its vocabulary: no rows that training's padding added, and whose tokenizer it was made with.

The other gates: log-probabilities of the live model are `parity.py`, finite weights are looked at while they are
written (`huggingface.py`), and digests are `digests.py`.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from pretrain.checkpoint.huggingface_config import CONFIG_NAME
from pretrain.checkpoint.huggingface_source import json_object
from pretrain.checkpoint.tokenizer_files import read_sentencepiece
from pretrain.data.manifest import TOKENIZER_NAME
from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import CheckpointError, TokenizerError
from pretrain.vocabulary import missing_pieces

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


def tokenizer_doubt(
    folder: Path, tokenizer: Tokenizer, *, vocab_size: int, fingerprint: str | None = None
) -> str | None:
    """Why a tokenizer may not be the one that weights were trained with; they cannot be used well with another.

    Args:
        folder: the weights: a checkpoint, or a Hugging Face folder, which may hold its own `tokenizer.model`.
        tokenizer: the one that is to be used with them.
        vocab_size: of the model.
        fingerprint: of the tokenizer they were trained with; None where nobody recorded it.

    Returns:
        Whole sentences, what to do left aside; None where nothing speaks against it.
    """
    found = [missing_pieces(num_pieces=tokenizer.vocab_size, vocab_size=vocab_size)]
    own = folder / TOKENIZER_NAME
    if fingerprint not in (None, tokenizer.fingerprint):
        found.append(f"{folder} was trained with tokenizer {fingerprint}, not with {tokenizer.fingerprint}.")
    elif fingerprint is None and own.is_file() and own.read_bytes() != tokenizer.model:
        found.append(f"{own} is another tokenizer than {tokenizer.name}.")
    reasons = [sentence for sentence in found if sentence is not None]
    if not reasons:
        return None
    return " ".join([*reasons, "With a tokenizer that is not the model's own, token ids stand for the wrong text."])
