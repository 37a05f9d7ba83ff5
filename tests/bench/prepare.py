"""Text to token shards: our command against a loop over megatron-core's builder, and against Hugging Face's encoder.

`python -m tests.bench.prepare [--quick] --json FILE`, with FINELINE_CORPUS naming a folder of `.jsonl.zst` files (else
the shipped text). One file of plain JSONL, one vocabulary of LLaMA's kind trained on it, one process on one core each,
taking turns; medians. Ours is the command line from its start to its end: imports, units, digests, manifests and all.
The other two are timed from their first line on, imports left out:

- megatron: what Megatron-LM's `tools/preprocess_data.py` does a document: json.loads, SentencePiece's encode, end of
  document, `IndexedDatasetBuilder.add_document`; at the end `finalize`.
- hf_tokenizers: json.loads and `encode_batch` of the same vocabulary with one thread; nothing is written.

Also says whether ours and the first wrote the same bytes, and how many documents the second encoded alike.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.result import describe_machine, is_quiet, package_versions, ratio, write_result

ROOT = Path(__file__).parents[2]
BATCH_DOCUMENTS = 1000
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
WAYS = ("ours", "megatron", "hf_tokenizers")
_SPACE = "\u2581"


def write_text(path: Path, *, num_bytes: int) -> dict[str, int]:
    """Writes documents of the corpus as plain JSONL, a few of each file in turn, so that any amount is a mixture."""
    from pretrain.config.data import DataConfig
    from pretrain.data.documents import Document, read_piece
    from pretrain.data.files import BUNDLED_DIR, find_files
    from pretrain.data.records import Piece

    folder = os.environ.get("FINELINE_CORPUS", str(BUNDLED_DIR))
    files = find_files([f"{folder}/*.jsonl.zst"], key="FINELINE_CORPUS")
    limit = DataConfig().max_line_bytes
    streams = [iter(read_piece(Piece(file), text_key="text", max_line_bytes=limit)) for file in files]
    written = documents = 0
    with path.open("w", encoding="utf-8") as out:
        while streams and written < num_bytes:
            for stream in list(streams):
                item = next(stream, None)
                if item is None:
                    streams.remove(stream)
                elif isinstance(item, Document):
                    out.write(json.dumps({"text": item.text}, ensure_ascii=False) + "\n")
                    written += len(item.text.encode())
                    documents += 1
    return {"text_bytes": written, "documents": documents}


def train_vocabulary(text: Path, model: Path, *, vocab_size: int, num_bytes: int) -> None:
    """A tokenizer of LLaMA's kind."""
    from pretrain.data.tokenizer_training import train_tokenizer

    texts, read = [], 0
    with text.open(encoding="utf-8") as lines:
        for line in lines:
            texts.append(json.loads(line)["text"])
            read += len(line)
            if read > num_bytes:
                break
    train_tokenizer(texts, model, vocab_size=vocab_size)


def run_ours(text: Path, model: Path, out: Path, *, vocab_size: int) -> list[str]:
    """The command that is measured."""
    return [
        *(sys.executable, "-m", "pretrain.data", "prepare", "data=files"),
        *(f"+data.sources.bench.paths=[{text}]", f"data.prepared_dir={out}", f"run.dir={out}.run"),
        *(f"tokenizer.path={model}", f"tokenizer.vocab_size={vocab_size}", "data.holdout_fraction=0"),
        *(f"data.shard_bytes={10**12}", "--workers", "1"),
    ]


def run_megatron(text: Path, model: Path, out: Path) -> float:
    """Seconds of the loop over megatron-core's builder."""
    import sentencepiece
    import torch
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    started = time.perf_counter()
    builder = IndexedDatasetBuilder(f"{out}.bin", dtype=DType.optimal_dtype(processor.get_piece_size()))
    with text.open(encoding="utf-8") as lines:
        for line in lines:
            ids = processor.encode(json.loads(line)["text"])
            ids.append(processor.eos_id())
            builder.add_document(torch.IntTensor(ids), [len(ids)])
    builder.finalize(f"{out}.idx")
    return time.perf_counter() - started


def run_hf_tokenizers(text: Path, model: Path, out: Path) -> float:
    """Seconds of encoding in batches."""
    encoder = fast_encoder(model)
    started = time.perf_counter()
    batch: list[str] = []
    with text.open(encoding="utf-8") as lines:
        for line in lines:
            batch.append(json.loads(line)["text"])
            if len(batch) == BATCH_DOCUMENTS:
                encoder.encode_batch(batch, add_special_tokens=False)
                batch = []
    encoder.encode_batch(batch, add_special_tokens=False)
    return time.perf_counter() - started


def fast_encoder(model: Path) -> Any:
    """The vocabulary as Hugging Face's BPE with byte fallback: as transformers converts LLaMA's."""
    import sentencepiece
    from tokenizers import Tokenizer, normalizers
    from tokenizers.models import BPE

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    pieces = [processor.id_to_piece(token) for token in range(processor.get_piece_size())]
    rank = {piece: token for token, piece in enumerate(pieces)}
    plain = {p for p, token in rank.items() if not (processor.is_control(token) or processor.is_byte(token))}
    merges = sorted(
        (-processor.get_score(rank[piece]), rank[piece[:cut]], rank[piece[cut:]], piece[:cut], piece[cut:])
        for piece in plain
        for cut in range(1, len(piece))
        if piece[:cut] in plain and piece[cut:] in plain
    )
    encoder = Tokenizer(
        BPE(rank, [(left, right) for *_, left, right in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    encoder.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    return encoder


def count_alike(text: Path, model: Path, *, documents: int) -> float:
    """Share of documents that Hugging Face's encoder and SentencePiece encode alike."""
    import sentencepiece

    encoder, processor = fast_encoder(model), sentencepiece.SentencePieceProcessor(model_file=str(model))
    alike = seen = 0
    with text.open(encoding="utf-8") as lines:
        for line, _ in zip(lines, range(documents), strict=False):
            document = json.loads(line)["text"]
            alike += encoder.encode(document, add_special_tokens=False).ids == processor.encode(document)
            seen += 1
    return alike / seen


def measure(way: str, *, text: Path, model: Path, folder: Path, vocab_size: int) -> dict[str, Any]:
    """Seconds and peak memory of one way, in a process of its own."""
    out = folder / f"{way}-{time.time_ns()}"
    if way == "ours":
        command = run_ours(text, model, out, vocab_size=vocab_size)
    else:
        asked = json.dumps([way, str(text), str(model), str(out)])
        command = [sys.executable, "-m", "tests.bench.prepare", "--measure", asked]
    started = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **ENVIRONMENT}
    )
    printed, error = process.stdout.read(), process.stderr.read()  # type: ignore[union-attr]
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"{' '.join(command)}\n{error}")
    if way != "ours":
        seconds = float(printed.splitlines()[-1])
    return {"seconds": seconds, "peak_megabytes": usage.ru_maxrss * 1024 / 1e6, "out": out}


def is_same(ours: Path, theirs: Path) -> bool:
    """Whether our only shard has the bytes of megatron-core's."""
    return all(
        (ours / "bench" / f"00000.train{ending}").read_bytes() == Path(f"{theirs}{ending}").read_bytes()
        for ending in (".bin", ".idx")
    )


def figures(*, quick: bool, rounds: int) -> dict[str, Any]:
    """All figures; medians over rounds."""
    vocab_size, num_bytes = (4000, 8_000_000) if quick else (32_000, 200_000_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text, model = folder / "text.jsonl", folder / "tokenizer.model"
        about = write_text(text, num_bytes=num_bytes)
        train_vocabulary(text, model, vocab_size=vocab_size, num_bytes=num_bytes // (4 if quick else 10))
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for number in range(rounds):
            for way in WAYS if number % 2 == 0 else WAYS[::-1]:
                one = measure(way, text=text, model=model, folder=folder, vocab_size=vocab_size)
                print(f"round {number + 1}, {way}: {about['text_bytes'] / one['seconds'] / 1e6:.2f} MB/s", flush=True)
                found[way].append(one)
        same = is_same(found["ours"][0]["out"], found["megatron"][0]["out"])
        alike = count_alike(text, model, documents=500)
    rates = {
        way: about["text_bytes"] / 1e6 / statistics.median(one["seconds"] for one in runs)
        for way, runs in found.items()
    }
    return {
        **about,
        "vocab_size": vocab_size,
        "rounds": rounds,
        "mb_per_second_per_core": rates,
        "ratio_to_megatron": ratio(rates["ours"], rates["megatron"]),
        "ratio_to_hf_tokenizers": ratio(rates["ours"], rates["hf_tokenizers"]),
        "peak_megabytes": {
            way: statistics.median(one["peak_megabytes"] for one in runs) for way, runs in found.items()
        },
        "same_bytes_as_megatron": same,
        "share_of_documents_hf_encodes_alike": alike,
    }


def main(arguments: list[str]) -> None:
    """Runs and writes the result."""
    parser = argparse.ArgumentParser("python -m tests.bench.prepare", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="8 MB, a small vocabulary, one round")
    parser.add_argument("--rounds", type=int, help="default: 3, quick 1")
    parser.add_argument("--json", type=Path, help="result file")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        way, *paths = json.loads(options.measure)
        run = {"megatron": run_megatron, "hf_tokenizers": run_hf_tokenizers}[way]
        print(run(*map(Path, paths)))
        return
    machine = describe_machine(threads=1)
    is_quiet(machine)
    found = figures(quick=options.quick, rounds=options.rounds or (1 if options.quick else 3))
    print(json.dumps(found, indent=2))
    if options.json:
        write_result(
            options.json,
            name="prepare",
            figures=found,
            command=shlex.join(["python", "-m", "tests.bench.prepare", *arguments]),
            machine=machine,
            versions=package_versions(["megatron-core", "sentencepiece", "tokenizers", "datatrove", "orjson", "numpy"]),
        )


if __name__ == "__main__":
    main(sys.argv[1:])
