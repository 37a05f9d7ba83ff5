"""The gate on an export's tokenizer: `AutoTokenizer` must give the ids of training, on texts made to tell.

What SentencePiece and `tokenizers` do differently is found by trying it, not by knowing kinds of models: every piece,
texts of many scripts, spaces in every place, user-defined symbols beside everything, and pieces in random order. It
takes some five seconds of one core for 32,000 pieces, reading the files included.

Two differences are left aside, as they are in the published files of LLaMA: the names of special pieces written out
in a text (`<s>`), and U+2581, which training encodes as its bytes so that every text decodes to itself.
"""

from __future__ import annotations

import functools
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.checkpoint.parity import export_token_ids
from pretrain.checkpoint.tokenizer_files import SentencePieceModel, read_sentencepiece, write_tokenizer_files
from pretrain.data.tokenizer import Tokenizer

ALLOW_MISMATCH = (
    "Scores of such an export are not those of the model that was trained. Export it nevertheless with "
    "checkpoint.allow_tokenizer_mismatch=true (--allow-tokenizer-mismatch); the model card then says so."
)
"""What to do about a mismatch."""

_SPACE = "\u2581"
_NUM_RANDOM = 5000
_NUM_PIECES_ALONE = 4000
_PIECES_IN_A_TEXT = 16
_NUM_SYMBOLS_IN_PAIRS = 24
_TEXTS = (
    " lead",
    "trail ",
    "  two  spaces  ",
    "a  b   c    d",
    " ",
    "   ",
    "\n",
    "\n\n  indented\n\tby a tab\r\n",
    "def f(x):\n    return x[0] + 12_345\n",
    "The river's <0x0A> costs $3.14; see http://a.org/b?c=d&e=%20 for more…",
    "Ünïcödé naïve façade e\u0301a\u0308 \u00a0\u3000\u200b\u00ad",
    "ﬁne Ⅳ ① ｆｕｌｌ ｶﾞ ½ ℃",
    "你好世界。日本語のテキスト 한국어 텍스트",
    "Привет мир שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดี",
    "👩‍👩‍👧 🇫🇷 😀\ufe0f \U0001f600",
    "\x07\x1b\x7f",
)


@dataclass(frozen=True, slots=True)
class TokenizerMismatch:
    """Where the tokenizer files of an export give other ids than training.

    Attributes:
        num_texts: texts that were tried.
        num_different: how many of them have other ids.
        text: the shortest of these.
        pieces: what it is in training.
        exported_pieces: what it is in transformers.
    """

    num_texts: int
    num_different: int
    text: str
    pieces: tuple[str, ...]
    exported_pieces: tuple[str, ...]

    def __str__(self) -> str:
        """Two sentences, for errors, warnings and the model card."""
        return (
            f"AutoTokenizer gives other ids than the tokenizer of training for {self.num_different:,} of "
            f"{self.num_texts:,} texts that were tried. For example {self.text!r} is {_shown(self.pieces)} in training "
            f"and {_shown(self.exported_pieces)} in transformers."
        )


def tokenizer_mismatch(folder: Path) -> TokenizerMismatch | None:
    """Compares a folder's tokenizer files, as transformers reads them, with its `tokenizer.model`, as training does.

    Args:
        folder: with files as `write_tokenizer_files` writes them.

    Returns:
        None where the ids agree. The same files are not compared twice in a process.

    Raises:
        CheckpointError: transformers cannot read the files.
        TokenizerError: the model cannot be read.
    """
    names = ("tokenizer.model", "tokenizer_config.json", "tokenizer.json")
    return _compared(tuple((name, (folder / name).read_bytes()) for name in names if (folder / name).is_file()))


def export_mismatch(model_path: Path, *, add_bos: bool) -> TokenizerMismatch | None:
    """What `tokenizer_mismatch` will say of an export with this SentencePiece model; for a warning beforehand.

    Args:
        model_path: the run's tokenizer.
        add_bos: as the export will have it.

    Raises:
        CheckpointError: transformers cannot read the files that would be written.
        TokenizerError: the model cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer_files(model_path, Path(folder), add_bos=add_bos)
        return tokenizer_mismatch(Path(folder))


@functools.lru_cache(maxsize=4)
def _compared(files: tuple[tuple[str, bytes], ...]) -> TokenizerMismatch | None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in files:
            (folder / file).write_bytes(content)
        # Without a model's configuration transformers does not believe the class that tokenizer_config.json names.
        (folder / "config.json").write_text('{"model_type": "llama"}\n', encoding="utf-8")
        tokenizer = Tokenizer.load(folder / "tokenizer.model")
        texts = probe_texts(read_sentencepiece(folder / "tokenizer.model"))
        exported = export_token_ids(folder, texts)
    trained = [tokenizer.encode(text) for text in texts]
    different = [index for index, ids in enumerate(trained) if ids != exported[index]]
    if not different:
        return None
    first = min(different, key=lambda index: (len(texts[index]), index))

    def pieces(ids: Sequence[int]) -> tuple[str, ...]:
        return tuple(tokenizer.piece(token) if token < tokenizer.vocab_size else str(token) for token in ids)

    return TokenizerMismatch(len(texts), len(different), texts[first], pieces(trained[first]), pieces(exported[first]))


def probe_texts(model: SentencePieceModel) -> list[str]:
    """Texts on which tokenizers that differ show it. The same model gives the same texts."""
    stand_for_text = [text.replace(_SPACE, " ") for text in model.texts]
    symbols = [text.replace(_SPACE, " ") for text in model.user_defined]
    draw = random.Random(0)
    alone = draw.sample(stand_for_text, min(len(stand_for_text), _NUM_PIECES_ALONE))
    lines = (
        "\n".join(stand_for_text[first : first + _PIECES_IN_A_TEXT])
        for first in range(0, len(stand_for_text), _PIECES_IN_A_TEXT)
    )
    mixed = [*stand_for_text, *(symbols * 20)[: len(stand_for_text)], *_TEXTS]
    joined = ("".join(draw.choices(mixed, k=draw.randint(2, 9))) for _ in range(_NUM_RANDOM if mixed else 0))
    texts = dict.fromkeys([*_TEXTS, *alone, *lines, *_around(symbols), *joined])
    texts.pop("", None)
    return list(texts)


def _around(symbols: Sequence[str]) -> Iterator[str]:
    """User-defined symbols at both ends of a text, beside letters, spaces, the name of a byte, and one another."""
    for symbol in symbols:
        for form in ("{0}", "{0}{0}", "x{0}y", " {0} ", "  {0}  ", "{0} x", "x {0}", "\n{0}\n", "{0}<0x41>{0}"):
            yield form.format(symbol)
    few = symbols[:_NUM_SYMBOLS_IN_PAIRS]
    for first in few:
        for second in few:
            yield f"{first}{second}"
            yield f"x{first}{second[1:]}y"
            yield f"x{first[:-1]}{second}y"


def _shown(pieces: Sequence[str]) -> str:
    return "[" + ", ".join(pieces[:12]) + (", …]" if len(pieces) > 12 else "]")
