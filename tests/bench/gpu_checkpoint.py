"""What an asynchronous save holds training up, against copying as many bytes into page-locked memory.

    python -m tests.bench.gpu_checkpoint --json tests/bench/results/gpu_checkpoint.json

The state (fp32 weights and moments, tensor by tensor) of a model of `--model`'s sizes lies on the device. In each
round, one after the other: one plain copy into page-locked memory, which says how fast the bus is; a background
`Publisher.save`, how long it holds the caller up and when it is published; the same bytes written by plain `write` and
`fsync`; and `torch.distributed.checkpoint.async_save`, as it comes and with page-locked staging. Figures are medians
over rounds, and `stall_over_copy` is of each round's pair. The first round fills what is kept from save to save and
is not counted. Without a GPU the state is in host memory and so is the copy (`--quick`: about 700 MB of state); that
shows that everything runs, and says nothing of a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from pretrain.checkpoint.blocks import KINDS, Block, Chunk
from pretrain.checkpoint.manifest import CheckpointMeta
from pretrain.checkpoint.publish import Publisher
from pretrain.checkpoint.staging import Staging
from pretrain.config.model import ModelConfig
from pretrain.model.spec import ModelSpec
from pretrain.state import RunState
from tests.bench.result import describe_machine, is_quiet, package_versions, ratio, spread, write_result

MODELS = {
    "1.3b": ModelConfig(num_layers=24, hidden_size=2048, ffn_hidden_size=5504, num_attention_heads=16),
    "7b": ModelConfig(num_layers=32, hidden_size=4096, ffn_hidden_size=11_008, num_attention_heads=32),
}
_VOCAB_SIZE = 32_000
_COPY_BYTES = 4 * 2**30
_WRITE_BYTES = 64 * 2**20
_NO_GPU = "there is no GPU, so nothing to lock pages for"
_PINNED = "dcp_async_save_pinned"

Round = dict[str, float]
"""Seconds by name."""


def main() -> None:
    arguments = _arguments()
    machine = describe_machine(threads=torch.get_num_threads())
    is_quiet(machine)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine["device"] = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    spec = sizes(arguments.model, quick=arguments.quick)
    chunks = state_of(spec, device)
    rounds = arguments.rounds or (2 if arguments.quick else 4)
    missing = _left_out(device, _bytes_of(chunks))
    page_lock_seconds = _page_lock_seconds(chunks)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        measured = _measure(chunks, _meta(spec), Path(name), rounds=rounds, missing=missing)
    figures = summarize(measured, state_bytes=_bytes_of(chunks), missing=missing)
    if page_lock_seconds is None:
        figures["missing"]["page_lock_seconds"] = _NO_GPU
    figures |= {
        "page_lock_seconds": page_lock_seconds,
        "settings": {"model": arguments.model, "quick": arguments.quick, "rounds": rounds},
    }
    write_result(
        arguments.json,
        name="gpu_checkpoint",
        figures=figures,
        command=shlex.join(["python", "-m", "tests.bench.gpu_checkpoint", *_shown(sys.argv[1:])]),
        machine=machine,
        versions=package_versions(["torch", "numpy", "xxhash"]),
    )
    print(json.dumps({key: figures[key] for key in ("stall_over_copy", "stall_seconds", "dcp_stall_over_ours")}))


def sizes(model: str, *, quick: bool) -> ModelSpec:
    """The model; `quick` makes it a quarter as wide and at most 8 layers deep: 58M parameters of the 1.3B."""
    config = MODELS[model]
    if quick:
        config = dataclasses.replace(
            config,
            num_layers=min(8, config.num_layers),
            hidden_size=config.hidden_size // 4,
            ffn_hidden_size=config.ffn_hidden_size // 4,
            num_attention_heads=config.num_attention_heads // 4,
        )
    return ModelSpec.from_config(config, _VOCAB_SIZE)


def state_of(spec: ModelSpec, device: torch.device) -> list[Chunk]:
    """Weights and moments as one rank alone keeps them: a tensor per parameter and kind."""
    hidden, heads = spec.hidden_size, spec.num_attention_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {"embedding": (spec.vocab_size, hidden), "norm": (hidden,)}
    for layer in range(spec.num_layers):
        shapes |= {
            f"layers.{layer}.attention_norm": (hidden,),
            f"layers.{layer}.qkv": (spec.qkv_size, hidden),
            f"layers.{layer}.proj": (hidden, heads),
            f"layers.{layer}.mlp_norm": (hidden,),
            f"layers.{layer}.gate_up": (2 * spec.ffn_hidden_size, hidden),
            f"layers.{layer}.down": (hidden, spec.ffn_hidden_size),
        }
    shapes["output"] = (spec.vocab_size, hidden)
    chunks = []
    for key, shape in shapes.items():
        block = Block(key, shape, (0,) * len(shape), shape)
        tensors = {kind: torch.rand(block.numel, device=device) for kind in KINDS}
        chunks.append(Chunk(block, 0, tensors))
    assert sum(chunk.numel for chunk in chunks) == spec.num_parameters
    return chunks


def summarize(rounds: Sequence[Round], *, state_bytes: int, missing: dict[str, str]) -> dict[str, Any]:
    """The figures of the rounds; null with a reason under `missing` for what was left out.

    Args:
        rounds: `copy`: seconds of a plain copy of the whole state; `stall`: what a save held the caller up; `saved`:
            from its call to its publication; `written`: plain write and fsync; `NAME` and `NAME_saved` of each peer.
        state_bytes: of the state.
        missing: names of peers left out, and why.
    """

    def over(top: str, bottom: str) -> dict[str, float]:
        return spread([one[top] / one[bottom] for one in rounds])

    def seconds(name: str) -> float | None:
        return statistics.median(one[name] for one in rounds) if name in rounds[0] else None

    stall, saved, written = (statistics.median(one[name] for one in rounds) for name in ("stall", "saved", "written"))
    figures: dict[str, Any] = {
        "state_bytes": state_bytes,
        "stall_over_copy": over("stall", "copy"),
        "stall_seconds": stall,
        "copy_bytes_per_second": state_bytes / statistics.median(one["copy"] for one in rounds),
        "durable_seconds": saved,
        "durable_bytes_per_second": state_bytes / saved,
        "durable_over_write_fsync": over("saved", "written"),
        "write_fsync_bytes_per_second": state_bytes / written,
    }
    for peer in ("dcp_async_save", _PINNED):
        figures[f"{peer}_stall_seconds"] = seconds(peer)
        figures[f"{peer}_durable_seconds"] = seconds(f"{peer}_saved")
    stalls = [one for one in (seconds("dcp_async_save"), seconds(_PINNED)) if one is not None]
    figures["dcp_stall_over_ours"] = ratio(min(stalls, default=None), stall)
    reasons = {f"{peer}_{what}_seconds": why for peer, why in missing.items() for what in ("stall", "durable")}
    return figures | {"missing": reasons}


def _measure(
    chunks: list[Chunk], meta: CheckpointMeta, folder: Path, *, rounds: int, missing: dict[str, str]
) -> list[Round]:
    """Seconds of each counted round."""
    publisher = Publisher(folder / "ours", rank=0, world_size=1, barrier=lambda: None, background=True)
    contenders: list[Callable[[int], Round]] = [
        _plain_copy(chunks),
        lambda step: _save(publisher, step, chunks, meta),
        _plain_write(chunks, folder / "plain"),
        *_peers(chunks, folder / "dcp", missing),
    ]
    measured = []
    for step in range(rounds + 1):
        one: Round = {}
        for contender in contenders:
            one |= contender(step)
        print(f"round {step}/{rounds}  " + "  ".join(f"{key} {value:.3f} s" for key, value in one.items()), flush=True)
        measured.append(one)
    return measured[1:]


def _plain_copy(chunks: list[Chunk]) -> Callable[[int], Round]:
    """Copies one long tensor, and counts as many seconds as the whole state takes at that speed."""
    state_bytes, device = _bytes_of(chunks), chunks[0].tensors["param"].device
    source = torch.rand(min(state_bytes, _COPY_BYTES) // 4, device=device)
    target = torch.zeros(len(source), pin_memory=device.type == "cuda")

    def copy(step: int) -> Round:
        _synchronize()
        began = time.perf_counter()
        target.copy_(source, non_blocking=True)
        _synchronize()
        return {"copy": (time.perf_counter() - began) * state_bytes / source.nbytes}

    return copy


def _save(publisher: Publisher, step: int, chunks: list[Chunk], meta: CheckpointMeta) -> Round:
    _synchronize()
    began = time.perf_counter()
    path = publisher.save(step, chunks, meta)
    stall = time.perf_counter() - began
    publisher.wait()
    saved = time.perf_counter() - began
    shutil.rmtree(path)
    return {"stall": stall, "saved": saved}


def _plain_write(chunks: list[Chunk], path: Path) -> Callable[[int], Round]:
    """Writes a block of memory until the file is as long as the state, and waits until it is on the disk."""
    state_bytes = _bytes_of(chunks)
    block = memoryview(os.urandom(_WRITE_BYTES))

    def write(step: int) -> Round:
        began = time.perf_counter()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        left = state_bytes
        while left:
            left -= os.write(descriptor, block[: min(left, _WRITE_BYTES)])
        os.fsync(descriptor)
        os.close(descriptor)
        seconds = time.perf_counter() - began
        path.unlink()
        return {"written": seconds}

    return write


def _peers(chunks: list[Chunk], folder: Path, missing: dict[str, str]) -> list[Callable[[int], Round]]:
    """`async_save` of the same tensors: as it comes, and with page-locked memory that is kept from save to save."""
    state = {f"{chunk.block.key}.{kind}": tensor for chunk in chunks for kind, tensor in chunk.tensors.items()}
    pinned = None
    if _PINNED not in missing:
        pinned = DefaultStager(
            StagingOptions(
                use_pinned_memory=True, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=True
            )
        )

    def save(name: str, stager: DefaultStager | None) -> Round:
        _synchronize()
        began = time.perf_counter()
        future = dcp.async_save(state, checkpoint_id=folder, async_stager=stager, no_dist=True)
        stall = time.perf_counter() - began
        assert isinstance(future, Future), "staging was to be done when the call returned"
        future.result()
        saved = time.perf_counter() - began
        shutil.rmtree(folder)
        return {name: stall, f"{name}_saved": saved}

    stagers = {"dcp_async_save": None, _PINNED: pinned}
    return [lambda step, name=name: save(name, stagers[name]) for name in stagers if name not in missing]


def _left_out(device: torch.device, state_bytes: int) -> dict[str, str]:
    """Peers that cannot run here, and why."""
    if device.type == "cpu":
        return {_PINNED: _NO_GPU}
    # Its staging rounds every tensor up to a power of two, and ours and that of its plain form are there too.
    if 4 * state_bytes > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        return {_PINNED: "the host has not the memory for three copies of the state, one of them rounded up"}
    return {}


def _page_lock_seconds(chunks: list[Chunk]) -> float | None:
    """What locking takes, when somebody waits for it; None where there is no GPU.

    Raises:
        SystemExit: the driver refuses: no figure would mean anything.
    """
    if not torch.cuda.is_available():
        return None
    memory = Staging(KINDS)
    began = time.perf_counter()
    memory.reserve(chunks)
    if not memory.is_page_locked():
        raise SystemExit("memory for saving cannot be page-locked here; see the warning above")
    return time.perf_counter() - began


def _bytes_of(chunks: list[Chunk]) -> int:
    return sum(tensor.nbytes for chunk in chunks for tensor in chunk.tensors.values())


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _meta(spec: ModelSpec) -> CheckpointMeta:
    return CheckpointMeta(
        optimizer_step=0,
        run_state=RunState(seed=0).state_dict(),
        config_hash="bench",
        identity_hash="bench",
        model=spec,
        sequence_length=2048,
        tokenizer_fingerprint="none",
        layout={"engine": "none", "world_size": 1},
    )


def _shown(arguments: Sequence[str]) -> list[str]:
    """The command line without a folder of this machine."""
    return ["FOLDER" if index and arguments[index - 1] == "--folder" else one for index, one in enumerate(arguments)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--model", choices=list(MODELS), default="1.3b", help="whose sizes the state has")
    parser.add_argument("--folder", type=Path, help="where to write checkpoints; the system's temporary folder if not")
    parser.add_argument("--rounds", type=int, help="counted rounds: 4, or 2 with --quick")
    parser.add_argument("--quick", action="store_true", help="a quarter as wide and 8 layers: see that everything runs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
