"""A preparation that is killed, at any moment and in any of its processes, goes on and ends with the same bytes."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pretrain.config.data import SourceConfig
from pretrain.config.run import RunConfig
from pretrain.data import execute, prepare, shards
from pretrain.data.prepare import ensure_prepared
from pretrain.data.prepared import check_folder
from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import DataError

ROOT = Path(__file__).parents[3]
CORPUS = os.environ.get("FINELINE_CORPUS")
needs_corpus = pytest.mark.skipif(CORPUS is None, reason="set FINELINE_CORPUS to a folder of .jsonl.zst files")


def digests(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def prepare_in(config: RunConfig, directory: Path, **options: int) -> dict[str, bytes]:
    config.data.prepared_dir = str(directory)
    ensure_prepared(config, run_root=directory.parent, **options)
    return digests(directory)


def _prepare_until(config: RunConfig, calls: int) -> None:
    """Prepares, and dies at the n-th time that something is made durable or replaced, before or after it is."""
    left = calls

    def deadly(call: Callable) -> Callable:
        def wrapped(*arguments: object) -> object:
            nonlocal left
            left -= 1
            if left == 0 and calls % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*arguments)
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    for name in ("fsync", "replace", "rename"):
        setattr(os, name, deadly(getattr(os, name)))
    ensure_prepared(config, run_root=Path(config.run.dir))


def test_killed_at_any_durable_step_it_goes_on_to_the_same_bytes(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_DURABLE_BYTES", 3000)
    config.data.shard_bytes = 20_000
    wanted = prepare_in(config, tmp_path / "whole")
    rng = random.Random(5)
    config.data.prepared_dir = str(tmp_path / "killed")
    kills = 0
    while True:
        process = multiprocessing.get_context("fork").Process(target=_prepare_until, args=(config, rng.randint(1, 60)))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    assert kills > 3
    assert digests(tmp_path / "killed") == wanted
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["killed", "whole"]


def test_what_a_crash_of_the_machine_took_is_written_again(config: RunConfig, tmp_path: Path) -> None:
    """States that survived, and shards that did not: only possible where a disk lies about what is durable."""
    wanted = prepare_in(config, tmp_path / "whole")
    config.data.prepared_dir = str(tmp_path / "crashed")
    writing = tmp_path / "crashed.writing"

    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards._Run, "_finish", lambda run: (run._make_durable(), stop()))
        with pytest.raises(KeyboardInterrupt):
            ensure_prepared(config, run_root=tmp_path)
    torn = writing / "prose" / "00000.train.bin"
    torn.write_bytes(torn.read_bytes()[:-2])
    assert prepare_in(config, tmp_path / "crashed") == wanted


def test_a_unit_whose_text_was_mended_is_made_again_and_others_are_kept(
    config: RunConfig, tmp_path: Path, write_jsonl: Callable, make_texts: Callable
) -> None:
    config.data.prepared_dir = str(tmp_path / "tokens")
    good = (tmp_path / "code.jsonl").read_text()
    (tmp_path / "code.jsonl").write_text(good + "{\n")
    with pytest.raises(DataError, match="1 of 121 lines are unusable"):
        ensure_prepared(config, run_root=tmp_path)
    kept = tmp_path / "tokens.writing" / "prose" / "00000.train.bin"
    before = kept.stat()
    (tmp_path / "code.jsonl").write_text(good)
    ensure_prepared(config, run_root=tmp_path)
    after = (tmp_path / "tokens" / "prose" / "00000.train.bin").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    check_folder(tmp_path / "tokens", full=True)


def test_shards_of_units_that_are_no_more_are_removed(config: RunConfig, tmp_path: Path) -> None:
    config.data.prepared_dir = str(tmp_path / "tokens")
    config.data.shard_bytes = 5000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "write_manifests", lambda *a, **o: os.kill(os.getpid(), signal.SIGKILL))
        process = multiprocessing.get_context("fork").Process(target=ensure_prepared, args=(config,),
                                                              kwargs={"run_root": tmp_path})  # fmt: skip
        process.start()
        process.join()
    assert len(list((tmp_path / "tokens.writing" / "code").iterdir())) > 8
    config.data.shard_bytes = 10**9
    found = prepare_in(config, tmp_path / "tokens")
    assert found == prepare_in(config, tmp_path / "anew")
    assert len([name for name in found if name.startswith("code/")]) == 5


def test_a_full_disk_is_told_and_what_is_done_is_kept(config: RunConfig, tmp_path: Path) -> None:
    """The kernel refuses to let a file grow, as it refuses on a full disk."""
    wanted = prepare_in(config, tmp_path / "whole")
    config.data.prepared_dir = str(tmp_path / "tokens")
    limit = max(len(content) for name, content in wanted.items() if name.endswith(".bin")) - 1
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(DataError, match=r"cannot be written: File too large.*the same command goes on") as caught:
            ensure_prepared(config, run_root=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.exit_code != 0
    assert not (tmp_path / "tokens").exists()
    assert prepare_in(config, tmp_path / "tokens") == wanted


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_on_a_file_system_without_room_nothing_half_written_looks_whole(config: RunConfig, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("this container may not mount")
    try:
        config.data.prepared_dir = str(small / "tokens")
        (small / "ballast").write_bytes(b"x" * 60_000)
        with pytest.raises(DataError, match="No space left on device"):
            ensure_prepared(config, run_root=tmp_path)
        assert not (small / "tokens").exists()
        (small / "ballast").unlink()
        found = prepare_in(config, small / "tokens")
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
    assert found == prepare_in(config, tmp_path / "roomy")


@pytest.mark.parametrize("victim", ["main", pytest.param("worker", marks=pytest.mark.slow)])
def test_no_worker_outlives_its_main_and_a_dead_worker_is_told(
    victim: str, config: RunConfig, tmp_path: Path, make_texts: Callable, write_jsonl: Callable
) -> None:
    write_jsonl(tmp_path / "code.jsonl", make_texts(2000, seed=2))
    config.data.shard_bytes = 200_000
    main = start_main(config, tmp_path / "tokens", workers=2)
    workers = wait_for_workers(main, tmp_path / "tokens.writing")
    (main if victim == "main" else workers[0]).kill()
    _, error = main.communicate(timeout=60)
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    if victim == "worker":
        assert main.returncode == 1 and "One of 2 workers was killed" in error
    assert not (tmp_path / "tokens").exists()
    found = prepare_in(config, tmp_path / "tokens", workers=1)
    assert found == prepare_in(config, tmp_path / "whole", workers=1)


def start_main(config: RunConfig, directory: Path, *, workers: int) -> subprocess.Popen[str]:
    """Preparation in a process of its own."""
    program = (
        "import sys, pickle; from pathlib import Path\n"
        "from pretrain.data.prepare import ensure_prepared; from pretrain.errors import FinelineError\n"
        "config = pickle.loads(bytes.fromhex(sys.stdin.read()))\n"
        "try: ensure_prepared(config, run_root=Path(config.data.prepared_dir).parent, workers=int(sys.argv[1]))\n"
        "except FinelineError as error: print(error, file=sys.stderr); sys.exit(1)\n"
    )
    config.data.prepared_dir = str(directory)
    main = subprocess.Popen(
        [sys.executable, "-c", program, str(workers)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert main.stdin is not None
    main.stdin.write(pickle.dumps(config).hex())
    main.stdin.close()
    main.stdin = None
    return main


def wait_for_workers(main: subprocess.Popen[str], writing: Path) -> list[psutil.Process]:
    """All processes below the main one, once units have been begun."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and main.poll() is None:
        if list(writing.glob("*/*.train.bin")):
            below = psutil.Process(main.pid).children(recursive=True)
            # The last to start are the workers: those that tokenise are the busiest.
            return sorted(below, key=lambda process: -process.cpu_times().user)
        time.sleep(0.02)
    raise AssertionError("no unit was begun")


def corpus_config(tmp_path: Path, tokenizer: Tokenizer) -> RunConfig:
    model = tmp_path / "given.model"
    tokenizer.save(model)
    config = RunConfig()
    config.run.dir = str(tmp_path)
    config.tokenizer.path, config.tokenizer.vocab_size = str(model), tokenizer.vocab_size
    config.data.sources = {"corpus": SourceConfig(paths=[f"{CORPUS}/*.jsonl.zst"])}
    config.data.shard_bytes, config.data.holdout_fraction = 4_000_000, 0.0
    return config


@needs_corpus
@pytest.mark.slow
def test_ten_kills_at_random_moments_over_a_large_corpus_change_no_byte(tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = corpus_config(tmp_path, tokenizer)
    wanted = prepare_in(config, tmp_path / "whole", workers=2)
    rng, kills = random.Random(8), 0
    while True:
        main = start_main(config, tmp_path / "killed", workers=2)
        if kills < 10:
            time.sleep(rng.uniform(0.5, 4.0))
            below = psutil.Process(main.pid).children(recursive=True) if main.poll() is None else []
            victim = rng.choice([psutil.Process(main.pid), *below]) if main.poll() is None else None
            if victim is not None:
                victim.kill()
                kills += 1
            main.communicate(timeout=120)
            assert psutil.wait_procs(below, timeout=10)[1] == []
        if main.wait(timeout=600) == 0:
            break
    assert kills == 10
    assert digests(tmp_path / "killed") == wanted
    assert not (tmp_path / "killed.writing").exists()


@needs_corpus
@pytest.mark.slow
def test_memory_of_a_worker_is_flat_in_the_size_of_its_input(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Peak resident memory with 10 MB, the whole corpus, and 2 GB in one file: at most 400 MB, and no growth."""
    import zstandard

    unpacked = b"".join(
        zstandard.ZstdDecompressor().stream_reader(path.open("rb")).read()
        for path in sorted(Path(CORPUS or "").glob("*.zst"))
    )
    peaks = {}
    for name, num_bytes in (("ten", 10_000_000), ("all", len(unpacked)), ("two thousand", 2_000_000_000)):
        path = tmp_path / "large.jsonl"
        with path.open("wb") as stream:
            for _ in range(-(-num_bytes // len(unpacked))):
                stream.write(unpacked[: unpacked.rfind(b"\n", 0, num_bytes) + 1])
        config = corpus_config(tmp_path, tokenizer)
        config.data.sources["corpus"].paths = [str(path)]
        config.data.shard_bytes = 10**12
        main = start_main(config, tmp_path / name.replace(" ", "-"), workers=1)
        peak = 0
        while main.poll() is None:
            try:
                status = Path(f"/proc/{main.pid}/status").read_text()
            except OSError:
                break
            peak = max([peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))])
            time.sleep(0.2)
        assert main.communicate() == (None, "")
        peaks[name] = peak * 1024
        shutil.rmtree(tmp_path / name.replace(" ", "-"))
    print(json.dumps(peaks))
    assert max(peaks.values()) <= 400e6
    assert peaks["two thousand"] <= peaks["all"] + 40e6


def test_an_interrupt_ends_the_workers(config: RunConfig, tmp_path: Path) -> None:
    """What ends the executor ends its whole group, at once."""
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    execute._end(sleeper)
    assert sleeper.poll() == -signal.SIGKILL
