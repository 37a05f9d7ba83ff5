"""Hugging Face tokenizer files made from a SentencePiece model, such that both give the same ids.

`transformers` rebuilds a LLaMA tokenizer from `tokenizer.model` with a rule that adds no leading space where the
text begins with one; SentencePiece adds it always. So `tokenizer.json` is written here, with SentencePiece's rule.
The few fields needed are read from the protobuf directly: no extra dependency, and nothing is executed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.errors import TokenizerError

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_BPE = 2
_SPACE = "\u2581"


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """The parts of a `tokenizer.model` that tokenization depends on.

    Attributes:
        pieces: (text, score, type) by id; types as in SentencePiece's ModelProto.
        is_bpe: byte-pair encoding (LLaMA), not unigram.
        byte_fallback: unknown characters become UTF-8 bytes.
        unk_id, bos_id, eos_id: ids of the special pieces; -1 where there is none.
        add_dummy_prefix: a space is put before every text.
        is_plain: text is otherwise taken as it is: no Unicode normalization, no removal of spaces.
    """

    pieces: tuple[tuple[str, float, int], ...]
    is_bpe: bool
    byte_fallback: bool
    unk_id: int
    bos_id: int
    eos_id: int
    add_dummy_prefix: bool
    is_plain: bool

    @property
    def is_convertible(self) -> bool:
        """Whether `tokenizer_json` gives the same ids as SentencePiece for every text without special pieces."""
        return self.is_bpe and self.is_plain and not any(kind == _USER_DEFINED for _, _, kind in self.pieces)


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Reads a `tokenizer.model`.

    Raises:
        TokenizerError: the file is missing, or no SentencePiece model.
    """
    try:
        fields = list(_fields(path.read_bytes()))
        pieces = tuple(_piece(dict(_fields(value))) for number, value in fields if number == 1)
        trainer = dict(_fields(next((value for number, value in fields if number == 2), b"")))
        normalizer = dict(_fields(next((value for number, value in fields if number == 3), b"")))
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}. Name the run's tokenizer.model.") from error
    except (ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise TokenizerError(
            f"{path} is not a SentencePiece model: {error}. Name the run's tokenizer.model."
        ) from error
    if not pieces:
        raise TokenizerError(f"{path} is not a SentencePiece model: it has no pieces. Name the run's tokenizer.model.")
    return SentencePieceModel(
        pieces=pieces,
        is_bpe=trainer.get(3, 1) == _BPE,
        byte_fallback=bool(trainer.get(35, 0)),
        unk_id=_signed(trainer.get(40, 0)),
        bos_id=_signed(trainer.get(41, 1)),
        eos_id=_signed(trainer.get(42, 2)),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        is_plain=not normalizer.get(2)  # precompiled character map
        and not normalizer.get(4, 1)  # remove_extra_whitespaces
        and bool(normalizer.get(5, 1))  # escape_whitespaces
        and not trainer.get(24, 0),  # treat_whitespace_as_suffix
    )


def write_tokenizer_files(model_path: Path, folder: Path, *, add_bos: bool) -> bool:
    """Writes `tokenizer.model`, `tokenizer_config.json` and, where it is exact, `tokenizer.json`.

    Args:
        model_path: the run's SentencePiece model.
        folder: where to write.
        add_bos: put `<s>` before a text by default.

    Returns:
        Whether `AutoTokenizer` gives SentencePiece's ids for every text without special pieces. False leaves the
        conversion to `transformers`, which is close for models of other families.

    Raises:
        TokenizerError: the model cannot be read.
    """
    model = read_sentencepiece(model_path)
    (folder / "tokenizer.model").write_bytes(model_path.read_bytes())
    special = {
        f"{name}_token": model.pieces[piece_id][0]
        for name, piece_id in (("unk", model.unk_id), ("bos", model.bos_id), ("eos", model.eos_id))
        if piece_id >= 0
    }
    config = {
        "add_bos_token": add_bos,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": 10**30,
        # This class takes tokenizer.json as it is; LlamaTokenizer would rebuild it with its own rules.
        "tokenizer_class": "PreTrainedTokenizerFast" if model.is_convertible else "LlamaTokenizer",
        **special,
    }
    _write_json(folder / "tokenizer_config.json", config)
    if model.is_convertible:
        _write_json(folder / "tokenizer.json", tokenizer_json(model, add_bos=add_bos))
    return model.is_convertible


def tokenizer_json(model: SentencePieceModel, *, add_bos: bool) -> dict[str, Any]:
    """The model in the format of Hugging Face's `tokenizers`."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepend = [{"type": "Prepend", "prepend": _SPACE}] if model.add_dummy_prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if model.add_dummy_prefix else []
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    special_ids = [i for i, (_, _, kind) in enumerate(model.pieces) if kind == _CONTROL or i == model.unk_id]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": model.pieces[i][0], **flags} for i in special_ids],
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": None,
        "post_processor": _bos_template(model) if add_bos and model.bos_id >= 0 else None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": model.pieces[model.unk_id][0] if model.unk_id >= 0 else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": model.byte_fallback,
            "ignore_merges": False,
            "vocab": {text: index for index, (text, _, _) in enumerate(model.pieces)},
            "merges": list(_merges(model)),
        },
    }


def _merges(model: SentencePieceModel) -> Iterator[str]:
    """Every way to build a piece from two others, best score first: SentencePiece merges whatever gives a piece."""
    rank = {text: index for index, (text, _, kind) in enumerate(model.pieces) if kind == _NORMAL}
    by_score = sorted(rank, key=lambda text: (-model.pieces[rank[text]][1], rank[text]))
    for text in by_score:
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in rank and right in rank:
                yield f"{left} {right}"


def _bos_template(model: SentencePieceModel) -> dict[str, Any]:
    bos = model.pieces[model.bos_id][0]
    first, second = ({"Sequence": {"id": name, "type_id": kind}} for name, kind in (("A", 0), ("B", 1)))
    starts = [{"SpecialToken": {"id": bos, "type_id": kind}} for kind in (0, 1)]
    return {
        "type": "TemplateProcessing",
        "single": [starts[0], first],
        "pair": [starts[0], first, starts[1], second],
        "special_tokens": {bos: {"id": bos, "ids": [model.bos_id], "tokens": [bos]}},
    }


def _piece(fields: dict[int, Any]) -> tuple[str, float, int]:
    return fields[1].decode(), struct.unpack("<f", fields.get(2, b"\0\0\0\0"))[0], int(fields.get(3, _NORMAL))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Fields of one protobuf message: (number, int for varints, bytes for the rest)."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"protobuf wire type {wire}")
        if at + size > len(data):
            raise ValueError("the file ends within a field")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a protobuf number is too long")


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
