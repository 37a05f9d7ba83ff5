"""Says what a tokenizer loses: by encoding and decoding built-in cases and, where given, real text.

python -m pretrain.data check_tokenizer tokenizer.model
python -m pretrain.data check_tokenizer tokenizer.model 'corpus/*.jsonl.zst'
python -m pretrain.data check_tokenizer tokenizer.model experiment=demo tokenizer.accept_loss=[repeated_spaces]

Leaves with 1 where something is lost that tokenizer.accept_loss does not name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from pretrain.data.commands.inputs import INPUTS_HELP, config_of, files_of
from pretrain.errors import DataError

HELP = "say what a tokenizer loses of the text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("tokenizer", type=Path, help="a SentencePiece tokenizer.model")
    parser.add_argument("inputs", nargs="*", metavar="KEY=VALUE|FILE", help=INPUTS_HELP)
    parser.add_argument(
        "--accept", nargs="+", action="extend", default=[], metavar="NAME", help="losses that are no failure"
    )
    parser.add_argument("--text-key", help="field or column of the files that holds the text (default: text)")


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    from pretrain.data.sample import Unread, training_text
    from pretrain.data.tokenizer import Tokenizer
    from pretrain.data.tokenizer_loss import check_names, describe, measure

    tokenizer = Tokenizer.load(options.tokenizer)
    texts: Iterator[str] = iter(())
    accept = {word for word in options.accept if word.isidentifier()}
    inputs = [*options.inputs, *(word for word in options.accept if not word.isidentifier())]  # behind --accept
    if inputs:
        config = config_of(inputs, text_key=options.text_key)
        accept |= set(config.tokenizer.accept_loss)
        unread = Unread(config)
        texts = training_text(config, files_of(config), on_reject=unread.add)
    check_names(sorted(accept))
    report = measure(tokenizer, texts)
    if options.inputs:
        if not report.num_documents:
            raise DataError(
                f"No document was read from {' '.join(options.inputs)}, so nothing was checked. --text-key names the "
                f"field or column that holds the text; a weight of 0 leaves a source out. {unread.sentence()}".rstrip()
            )
        if sentence := unread.sentence():
            print(sentence, file=sys.stderr)
    print(
        f"{options.tokenizer}: {tokenizer.vocab_size} pieces, {tokenizer.fingerprint}; checked on built-in cases and "
        f"{report.num_documents} documents ({report.num_bytes:,} bytes)"
    )
    if not report.losses:
        print("  nothing is lost: every text decodes to itself")
    for loss in report.losses:
        print(describe(loss, report) + (" - accepted" if loss.name in accept else ""))
    return int(any(loss.name not in accept for loss in report.losses))
