"""Hugging Face tokenizer files made from a SentencePiece model, such that both give the same ids.

`transformers` rebuilds a LLaMA tokenizer from `tokenizer.model` with a rule that adds no leading space where the
text begins with one; SentencePiece adds it always. So `tokenizer.json` is written here, with SentencePiece's rules.
Whether the ids agree is measured, not assumed: see `tokenizer_parity.py`. The few fields needed are read from the
protobuf directly: no extra dependency, and nothing is executed.

User-defined symbols are found by SentencePiece in the normalized text (spaces are U+2581 by then), from left to right,
the longest first, and nothing is merged across them. Added tokens cannot do that: the `tokenizers` library normalizes
their content too, dummy prefix included, or looks for them before the dummy prefix is there. A pre-tokenizer can: it
splits at the symbols, and `ignore_merges` makes each of them its own token.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.errors import TokenizerError

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_UNIGRAM, _BPE = 1, 2
_SPACE = "\u2581"


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """The parts of a `tokenizer.model` that tokenization depends on.

    Attributes:
        pieces: (text, score, type) by id; types as in SentencePiece's ModelProto.
        is_bpe: byte-pair encoding (LLaMA).
        is_unigram: SentencePiece's other usual kind.
        byte_fallback: unknown characters become UTF-8 bytes.
        unk_id, bos_id, eos_id: ids of the special pieces; -1 where there is none.
        add_dummy_prefix: a space is put before every text.
        removes_extra_spaces: repeated spaces become one, and those at the ends of a text are dropped.
        character_map: Unicode normalization, as SentencePiece has it compiled; empty where there is none.
        marks_spaces: spaces are U+2581 in pieces, and the dummy prefix is before a text, not after it.
    """

    pieces: tuple[tuple[str, float, int], ...]
    is_bpe: bool
    is_unigram: bool
    byte_fallback: bool
    unk_id: int
    bos_id: int
    eos_id: int
    add_dummy_prefix: bool
    removes_extra_spaces: bool
    character_map: bytes
    marks_spaces: bool

    @property
    def is_convertible(self) -> bool:
        """Whether `tokenizer_json` can express such a model.

        Unigram models weigh user-defined symbols against other pieces by a rule that `tokenizers` does not have.
        """
        return self.marks_spaces and (self.is_bpe or (self.is_unigram and not self.user_defined))

    @property
    def texts(self) -> list[str]:
        """Pieces that stand for text; those of bytes and special pieces do not."""
        return [text for text, _, kind in self.pieces if kind in (_NORMAL, _USER_DEFINED)]

    @property
    def user_defined(self) -> list[str]:
        """Symbols that are found before anything else, the longest first."""
        return sorted(
            (text for text, _, kind in self.pieces if kind == _USER_DEFINED), key=lambda text: (-len(text), text)
        )


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
        is_bpe=trainer.get(3, _UNIGRAM) == _BPE,
        is_unigram=trainer.get(3, _UNIGRAM) == _UNIGRAM,
        byte_fallback=bool(trainer.get(35, 0)),
        unk_id=_signed(trainer.get(40, 0)),
        bos_id=_signed(trainer.get(41, 1)),
        eos_id=_signed(trainer.get(42, 2)),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        removes_extra_spaces=bool(normalizer.get(4, 1)),
        character_map=normalizer.get(2, b""),
        marks_spaces=bool(normalizer.get(5, 1)) and not trainer.get(24, 0),  # escape_, treat_whitespace_as_suffix
    )


def write_tokenizer_files(model_path: Path, folder: Path, *, add_bos: bool) -> None:
    """Writes `tokenizer.model`, `tokenizer_config.json` and, for kinds of models that it can express, `tokenizer.json`.

    Other kinds are left to the conversion of `transformers`, which gives other ids for much text.

    Args:
        model_path: the run's SentencePiece model.
        folder: where to write.
        add_bos: put `<s>` before a text by default.

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


def tokenizer_json(model: SentencePieceModel, *, add_bos: bool) -> dict[str, Any]:
    """The model in the format of Hugging Face's `tokenizers`."""
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if model.add_dummy_prefix else []
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    special_ids = [i for i, (_, _, kind) in enumerate(model.pieces) if kind == _CONTROL or i == model.unk_id]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": model.pieces[i][0], **flags} for i in special_ids],
        "normalizer": {"type": "Sequence", "normalizers": list(_normalizers(model))},
        "pre_tokenizer": _splits(model),
        "post_processor": _bos_template(model) if add_bos and model.bos_id >= 0 else None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": _bpe(model) if model.is_bpe else _unigram(model),
    }


def _normalizers(model: SentencePieceModel) -> Iterator[dict[str, Any]]:
    """From a text to what the pieces are looked for in; the order is SentencePiece's."""
    if model.character_map:
        yield {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.character_map).decode()}
    if model.removes_extra_spaces:
        yield {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
        yield {"type": "Replace", "pattern": {"Regex": r"\A | \z"}, "content": ""}
    if model.add_dummy_prefix:
        yield {"type": "Prepend", "prepend": _SPACE}
    yield {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}


def _splits(model: SentencePieceModel) -> dict[str, Any] | None:
    """Where text is cut before it is merged: around user-defined symbols; None where that is nowhere."""
    if model.is_bpe and not model.user_defined:
        return None
    found = [re.escape(text) for text in model.user_defined if " " not in text]  # normalized text has no spaces
    pattern = "|".join([*found, *_within_byte_names(model)])
    return (
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False} if pattern else None
    )


def _within_byte_names(model: SentencePieceModel) -> Iterator[str]:
    """A place within a text such as `<0x0A>` that no piece crosses: cut there, it is not taken for the byte's piece."""
    for head, tail in (("<", "0x[0-9A-F]{2}>"), ("<0", "x[0-9A-F]{2}>")):
        if not any(head[-1] + tail[0] in text for text in model.texts):
            yield f"(?<={head})(?={tail})"
            return


def _bpe(model: SentencePieceModel) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": model.pieces[model.unk_id][0] if model.unk_id >= 0 else None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": bool(model.user_defined),
        "vocab": {text: index for index, (text, _, _) in enumerate(model.pieces)},
        "merges": list(_merges(model)),
    }


def _unigram(model: SentencePieceModel) -> dict[str, Any]:
    lowest = min((score for _, score, kind in model.pieces if kind == _NORMAL), default=0.0)
    # What is not normal is found in no text; its score only must not be the lowest, from which that of <unk> follows.
    vocab = [[text, score if kind == _NORMAL else lowest] for text, score, kind in model.pieces]
    return {"type": "Unigram", "unk_id": model.unk_id, "vocab": vocab, "byte_fallback": model.byte_fallback}


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
