"""SentencePiece: encode and decode with a model, count the UTF-8 bytes of a token.

The only module that imports sentencepiece, and it does so when a tokenizer is first used. Encoding gives the
ids SentencePiece gives, faster: where the vocabulary proves that no piece crosses a word boundary, words are
encoded once and remembered. One difference is deliberate: U+2581, which SentencePiece turns into a space,
is encoded as its three bytes, so that every text decodes to itself.
"""

from __future__ import annotations

import hashlib
import io
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.durable import replace_file
from pretrain.errors import TokenizerError

_SPACE = "\u2581"
# A word with the spaces before it, newlines, or trailing spaces. Each boundary depends on its two characters
# only, so a vocabulary in which every piece is a single match has no piece that crosses one.
_WORD = re.compile(r" *[^ \n]+|\n+| +")
_CACHED_WORDS = 300_000
_CACHED_WORD_LENGTH = 40
# Serialised protocol buffers merge when appended: normalizer_spec (field 3) { add_dummy_prefix (field 3): false }.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class Tokenizer:
    """A loaded SentencePiece model. Encoding is a pure function of model and text.

    Attributes:
        model: the serialised model, as in `tokenizer.model`.
        fingerprint: first 32 hex digits of the sha256 of `model`.
        vocab_size: number of pieces.
        bos_id: id of `<s>`, -1 when the model has none.
        eos_id: id of `</s>`, -1 when the model has none.
        unk_id: id of `<unk>`.
    """

    def __init__(self, model: bytes, *, name: str = "the tokenizer model") -> None:
        """Parses a serialised model.

        Args:
            model: bytes of a `tokenizer.model`.
            name: what errors call it, usually its path.

        Raises:
            TokenizerError: not a SentencePiece model, or one without byte fallback.
        """
        self.model = model
        self.name = name
        self.fingerprint = hashlib.sha256(model).hexdigest()[:32]
        self._processor = _processor(model, name=name)
        self.vocab_size: int = self._processor.get_piece_size()
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()
        self.unk_id: int = self._processor.unk_id()
        self._space_bytes = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
        if self.unk_id in self._space_bytes or not all(map(self._processor.is_byte, self._space_bytes)):
            raise TokenizerError(
                f"{name} has no byte fallback: text outside its vocabulary would be lost as <unk> and bits per byte "
                "would be wrong. Set tokenizer.path to a model trained with byte_fallback, or to null to train one."
            )
        self._adds_prefix, is_identity = _normalization(model)
        self._bare = _processor(model + _NO_DUMMY_PREFIX, name=name) if is_identity else None
        whole = is_identity and all(len(_WORD.findall(text)) == 1 for text in self._texts())
        self._words = _WordCache(self._bare) if whole else None
        self._byte_table: np.ndarray | None = None

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Reads a `tokenizer.model` file.

        Raises:
            TokenizerError: missing, unreadable or not a SentencePiece model.
        """
        try:
            model = Path(path).read_bytes()
        except OSError as error:
            raise TokenizerError(
                f"tokenizer.path={str(path)!r} cannot be read ({error.strerror}). Give an existing SentencePiece "
                "`tokenizer.model`, or null to train one on the run's text."
            ) from None
        return cls(model, name=str(path))

    def save(self, path: str | Path) -> None:
        """Writes the model file, durably."""
        replace_file(Path(path), self.model)

    def encode(self, text: str) -> list[int]:
        """Ids of one document, without BOS and EOS; empty for empty text."""
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def encode_array(self, text: str) -> np.ndarray:
        """Ids of one document as int32 [num_tokens]; may be a read-only view.

        Raises:
            TokenizerError: the text holds a lone surrogate, which no UTF-8 can express.
        """
        if not text:
            return np.empty(0, dtype=np.int32)
        try:
            if self._bare is None:
                return np.asarray(self._processor.encode(text), dtype=np.int32)
            first, *others = text.split(_SPACE)
            ids = self._encode_bare(" " + first if self._adds_prefix else first)
            for part in others:
                ids += array("i", self._space_bytes).tobytes() + self._encode_bare(part)
        except (RuntimeError, UnicodeEncodeError):  # which of them depends on SentencePiece's version
            raise _explained(text) from None
        return np.frombuffer(ids, dtype=np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of the ids; control pieces vanish, bytes that are not UTF-8 become U+FFFD."""
        return str(self._processor.decode([int(token) for token in ids]))

    def piece(self, token: int) -> str:
        """The piece of one id, spaces shown as U+2581."""
        return str(self._processor.id_to_piece(int(token)))

    def is_control(self, token: int) -> bool:
        """Whether the id stands for no text (`<s>`, `</s>`)."""
        return bool(self._processor.is_control(int(token)))

    def token_bytes(self, ids_T: Sequence[int] | np.ndarray, *, document_starts: Iterable[int] = (0,)) -> np.ndarray:
        """UTF-8 bytes each token stands for; over a document they add up to the document's bytes.

        Where the tokenizer loses text (see `tokenizer_loss.py`) they add up to the bytes of what it decodes to, which
        are fewer: bits per byte then speak of the text that is left, and compare with no other tokenizer's.

        Args:
            ids_T: token ids, [T].
            document_starts: indices into `ids_T` at which a document begins. There the first token that is text
                carries SentencePiece's dummy space, which is not part of the document and not counted. Empty
                for ids from the middle of a document.

        Returns:
            int32 [T]; 0 for BOS, EOS and unknown.
        """
        if self._byte_table is None:
            self._byte_table = np.array([self._piece_bytes(token) for token in range(self.vocab_size)], dtype=np.int32)
        ids = np.asarray(ids_T, dtype=np.int64)
        counts = self._byte_table[ids]
        for start in document_starts if self._adds_prefix else ():
            position = int(start)
            while position < len(ids) and self.is_control(ids[position]) and ids[position] != self.eos_id:
                position += 1
            if position < len(ids) and self.piece(ids[position]).startswith(_SPACE):
                counts[position] -= 1
        return counts

    def require(self, *, vocab_size: int | None = None, bos: bool = False, eos: bool = False) -> None:
        """Checks that the model is the one the configuration speaks of.

        Raises:
            TokenizerError: another size than `tokenizer.vocab_size`, or no `<s>` or `</s>` where one is to be added.
        """
        if vocab_size is not None and vocab_size != self.vocab_size:
            raise TokenizerError(
                f"tokenizer.vocab_size={vocab_size}, but {self.name} has {self.vocab_size} pieces. "
                f"Set tokenizer.vocab_size={self.vocab_size}, or give the model that was meant."
            )
        for key, wanted, token in (("add_bos", bos, self.bos_id), ("add_eos", eos, self.eos_id)):
            if wanted and token < 0:
                raise TokenizerError(
                    f"tokenizer.{key}=true, but {self.name} has no such token. Set tokenizer.{key}=false."
                )

    def _encode_bare(self, text: str) -> bytes:
        """Native int32 ids of text that already carries its dummy prefix."""
        if self._words is not None:
            return b"".join(map(self._words.__getitem__, _WORD.findall(text)))
        assert self._bare is not None, "only models with identity normalization are encoded in parts"
        return array("i", self._bare.encode(text)).tobytes()

    def _texts(self) -> Iterator[str]:
        """Text of every piece that stands for text."""
        p = self._processor
        for token in range(self.vocab_size):
            if not (p.is_control(token) or p.is_unknown(token) or p.is_byte(token) or p.is_unused(token)):
                yield p.id_to_piece(token).replace(_SPACE, " ")

    def _piece_bytes(self, token: int) -> int:
        p = self._processor
        if p.is_control(token) or p.is_unknown(token):
            return 0
        return 1 if p.is_byte(token) else len(p.id_to_piece(token).replace(_SPACE, " ").encode())


class _WordCache(dict[str, bytes]):
    """Word → its ids as native int32 bytes. Bounded: long words are not kept, and a full cache starts anew."""

    def __init__(self, processor: Any) -> None:
        super().__init__()
        self._encode = processor.encode

    def __missing__(self, word: str) -> bytes:
        ids = array("i", self._encode(word)).tobytes()
        if len(word) <= _CACHED_WORD_LENGTH:
            if len(self) >= _CACHED_WORDS:
                self.clear()
            self[word] = ids
        return ids


def train_model(lines: Iterable[str], *, vocab_size: int, **settings: Any) -> bytes:
    """Trains a model with SentencePiece; the same lines and settings give the same bytes on every machine.

    Args:
        lines: sentences, all held in memory.
        vocab_size: number of pieces.
        settings: of SentencePieceTrainer; see `tokenizer_training.py`, which knows which.

    Raises:
        TokenizerError: SentencePiece's own reason why it cannot.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size,
            num_threads=1,  # stored in the model: another number is another file and another fingerprint
            minloglevel=4,
            **settings,
        )
    except (RuntimeError, OSError) as error:
        raise TokenizerError(_reason(str(error))) from None
    return model.getvalue()


def _processor(model: bytes, *, name: str) -> Any:
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        raise TokenizerError(
            f"{name} is not a SentencePiece model ({len(model)} bytes). Set tokenizer.path to a `tokenizer.model`, "
            "or to null to train one on the run's text."
        ) from None


def _explained(text: str) -> TokenizerError:
    """Why a text could not be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return TokenizerError(
            f"The text holds a lone surrogate, {text[error.start]!r} at character {error.start}: it is not valid "
            "Unicode. Repair or drop the document."
        )
    return TokenizerError(f"SentencePiece could not encode a text of {len(text)} characters: {text[:80]!r}.")


def _normalization(model: bytes) -> tuple[bool, bool]:
    """Whether the model adds a dummy prefix, and whether it leaves text as it is otherwise."""
    from sentencepiece import sentencepiece_model_pb2

    parsed: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined, unused-ignore]
    parsed.ParseFromString(model)
    spec = parsed.normalizer_spec
    is_identity = not (
        spec.precompiled_charsmap or spec.remove_extra_whitespaces or parsed.trainer_spec.treat_whitespace_as_suffix
    )
    return spec.add_dummy_prefix, is_identity and spec.escape_whitespaces


def _reason(message: str) -> str:
    """SentencePiece's own sentence, without its source location and failed condition."""
    text = message.rsplit("] ", 1)[-1].strip() or message.strip()
    return text if text.endswith(".") else text + "."
