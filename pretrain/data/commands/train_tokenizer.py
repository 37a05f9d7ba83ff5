"""Trains a tokenizer on a sample of text, and says what it loses.

python -m pretrain.data train_tokenizer --preset llama --vocab-size 32000 --out tokenizer.model experiment=demo
python -m pretrain.data train_tokenizer --vocab-size 32000 --out tokenizer.model 'corpus/*.jsonl.zst'

From a configuration the sample is taken from its sources by their weights, without what is held out. The text decides
the model: the same text and settings give the same file.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from pathlib import Path

from pretrain.config.tokenizer import PRESETS
from pretrain.data.commands.inputs import INPUTS_HELP, config_of, files_of
from pretrain.errors import ConfigError

HELP = "train a tokenizer on a sample of text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("inputs", nargs="+", metavar="KEY=VALUE|FILE", help=INPUTS_HELP)
    parser.add_argument("--out", required=True, type=Path, help="the model to write; must not exist")
    parser.add_argument("--preset", choices=PRESETS, help="settings (default: tokenizer.preset, llama)")
    parser.add_argument("--vocab-size", type=int, help="pieces (default: tokenizer.vocab_size, 32000)")
    parser.add_argument(
        "--training-bytes", type=int, help="text to train on (default: tokenizer.training_bytes, 10 MB)"
    )
    parser.add_argument("--text-key", help="field or column of the files that holds the text (default: text)")


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    from pretrain.data.sample import Unread, training_text
    from pretrain.data.tokenizer_loss import describe, measure
    from pretrain.data.tokenizer_training import train_tokenizer

    given = {"preset": options.preset, "vocab_size": options.vocab_size, "training_bytes": options.training_bytes}
    given = {key: value for key, value in given.items() if value is not None}
    for key in ("vocab_size", "training_bytes"):
        if given.get(key, math.inf) < 1:
            raise ConfigError(f"--{key.replace('_', '-')}={given[key]} is not a number above 0.")
    if options.out.exists():
        raise ConfigError(f"--out={options.out} exists. Name a file that does not exist.")
    config = config_of(options.inputs, text_key=options.text_key)
    config = dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, **given))
    files, unread = files_of(config), Unread(config)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(
        training_text(config, files, on_reject=unread.add),
        options.out,
        vocab_size=config.tokenizer.vocab_size,
        preset=config.tokenizer.preset,
        unread=unread.sentence,
    )
    if sentence := unread.sentence():
        print(sentence, file=sys.stderr)
    print(f"{options.out}: {tokenizer.vocab_size} pieces, preset {config.tokenizer.preset}, {tokenizer.fingerprint}")
    report = measure(tokenizer, training_text(config, files))
    if report.losses:
        print("It loses text; a run with it needs tokenizer.accept_loss:")
        print("\n".join(describe(loss, report) for loss in report.losses))
    return 0
