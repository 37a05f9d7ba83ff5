"""`python -m pretrain.checkpoint`: look at checkpoints, check them, export and release them, without training."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pretrain.arguments import Command, run_command
from pretrain.checkpoint import release_command
from pretrain.checkpoint.huggingface import DTYPES, export_checkpoint
from pretrain.checkpoint.manifest import MANIFEST_NAME, Manifest
from pretrain.checkpoint.reader import CheckpointReader, damage_in, find_checkpoint, list_checkpoints
from pretrain.errors import CheckpointError
from pretrain.locate import checkpoints_of
from pretrain.places import what_is


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        Exit status: 0, or 1 where a checkpoint is damaged or a command failed.
    """
    texts = {
        "list": ("checkpoints of a run, with sizes and problems (manifest and file sizes only)", _add_path, _list),
        "verify": ("read every byte of a run's checkpoints, or of one, and compare digests", _add_path, _verify),
        "inspect": ("run state, model, layout and tensors of one checkpoint", _add_checkpoint, _inspect),
        "export": ("write a Hugging Face folder", _add_export, _export),
        "release": (release_command.HELP, release_command.add_arguments, _release),
    }
    return run_command(
        arguments,
        prog="python -m pretrain.checkpoint",
        description="Looks at checkpoints, checks them, exports and releases them, without training.",
        commands={name: partial(Command, text, text, add, run) for name, (text, add, run) in texts.items()},
    )


def _add_path(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="run directory, its folder of checkpoints, or one checkpoint")


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    text = "checkpoint; of a run directory or a folder of checkpoints the newest is taken"
    parser.add_argument("path", type=Path, help=text)


def _add_export(parser: argparse.ArgumentParser) -> None:
    _add_checkpoint(parser)
    parser.add_argument("out", type=Path, help="folder to write; replaced if it exists")
    parser.add_argument("--tokenizer", type=Path, required=True, help="the run's tokenizer.model")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument("--add-bos", action="store_true", help="the tokenizer puts <s> before a text")
    parser.add_argument("--card", default="", help="Markdown for the model card")
    text = "refuse where a log-probability is further from the live model's; by precision if not given"
    parser.add_argument("--tolerance", type=float, default=None, metavar="NATS", help=text)
    text = "export although AutoTokenizer gives other ids than training; the model card says so"
    parser.add_argument("--allow-tokenizer-mismatch", action="store_true", help=text)


def _folders(path: Path) -> list[Path]:
    if (path / MANIFEST_NAME).exists():
        return [path]
    try:
        found = [info.path for info in list_checkpoints(checkpoints_of(path))]
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not found:
        raise CheckpointError(
            f"{path} is no checkpoint and holds none: it {what_is(path)}. Name a run directory, its folder of "
            "checkpoints, or a checkpoint."
        )
    return found


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _list(options: argparse.Namespace) -> int:
    wanted = _folders(options.path)
    root = wanted[0].parent
    rows, problems = [("step", "tokens", "holds", "ranks", "gigabytes", "state")], []
    for info in list_checkpoints(root):
        if info.path not in wanted:
            continue
        if info.manifest is None:
            rows.append((f"{info.step:_}", "", "", "", "", "DAMAGED"))
            problems.append(str(info.problem))
            continue
        m = info.manifest
        holds = "weights, moments" if m.is_resumable else "weights"
        tokens, size = m.meta.run_state.get("tokens", ""), f"{m.total_bytes / 1e9:.3f}"
        rows.append((f"{m.step:_}", f"{tokens:_}" if tokens else "0", holds, str(len(m.files)), size, "ok"))
    _print_table(rows)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _verify(options: argparse.Namespace) -> int:
    damaged = 0
    for path in _folders(options.path):
        problem = damage_in(path)
        damaged += problem is not None
        print(f"{path.name}: {'ok, every byte as written' if problem is None else f'DAMAGED: {problem}'}")
    return 1 if damaged else 0


def _inspect(options: argparse.Namespace) -> int:
    manifest = Manifest.read(find_checkpoint(options.path, verify_digests=False, say=_say))
    meta = manifest.meta
    facts = {
        "step": manifest.step,
        "optimizer_step": meta.optimizer_step,
        "holds": ", ".join(manifest.kinds),
        "parameters": meta.model.num_parameters,
        "sequence_length": meta.sequence_length,
        "config_hash": meta.config_hash,
        "identity_hash": meta.identity_hash,
        "tokenizer": meta.tokenizer_fingerprint,
        "reference": "none" if meta.reference is None else f"live model, {meta.reference.compute} compute",
        **{f"run.{name}": value for name, value in meta.run_state.items()},
        **{f"model.{name}": value for name, value in meta.model.to_dict().items()},
        **{f"layout.{name}": value for name, value in meta.layout.items()},
    }
    _print_table([(name, f"{value:_}" if type(value) is int else str(value)) for name, value in facts.items()])
    print()
    pieces: dict[str, int] = dict.fromkeys(manifest.tensors, 0)
    for chunk in manifest.chunks:
        pieces[chunk.key] += 1
    rows = [(key, " x ".join(map(str, shape)), str(pieces[key])) for key, shape in manifest.tensors.items()]
    _print_table([("tensor", "shape", "chunks"), *rows])
    return 0


def _export(options: argparse.Namespace) -> int:
    exported = export_checkpoint(
        CheckpointReader(find_checkpoint(options.path, say=_say)),
        options.out,
        tokenizer_model=options.tokenizer,
        dtype=options.dtype,
        add_bos=options.add_bos,
        card=options.card,
        tolerance=options.tolerance,
        allow_tokenizer_mismatch=options.allow_tokenizer_mismatch,
    )
    print(f"Exported to {exported.folder}")
    print(exported.parity or "Parity was not measured: the checkpoint holds no answers of the live model.")
    return 0


def _release(options: argparse.Namespace) -> int:
    rows = release_command.release(options)
    _print_table([release_command.HEAD, *rows])
    return 1 if release_command.failed(rows) else 0


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
