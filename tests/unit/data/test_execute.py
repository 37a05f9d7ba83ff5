"""Who does the work: processes, a Slurm array, one at a time; and what the command line says."""

from __future__ import annotations

import multiprocessing
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain import locks
from pretrain.config.run import RunConfig
from pretrain.data.__main__ import main
from pretrain.data.prepare import Making, ensure_prepared, making
from pretrain.data.unit_state import UnitState, read_state
from pretrain.errors import DataError
from tests.support.file_systems import without_flock


def digests(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def command(config: RunConfig) -> list[str]:
    """The configuration as the command line gives it."""
    sources = [f"+data.sources.{name}.paths=['{','.join(s.paths)}']" for name, s in config.data.sources.items()]
    return [
        "data=files", *sources, f"data.prepared_dir={config.data.prepared_dir}", f"run.dir={config.run.dir}",
        f"tokenizer.path={config.tokenizer.path}", f"tokenizer.vocab_size={config.tokenizer.vocab_size}",
        f"data.holdout_fraction={config.data.holdout_fraction}", f"data.shard_bytes={config.data.shard_bytes}",
    ]  # fmt: skip


def test_an_error_in_a_worker_reaches_the_user_as_what_it_was_and_others_are_kept(
    config: RunConfig, tmp_path: Path
) -> None:
    config.data.prepared_dir, config.data.shard_bytes = str(tmp_path / "tokens"), 10**9
    config.data.max_rejected_share = 0.0
    with (tmp_path / "code.jsonl").open("a") as stream:
        stream.write("{\n")
    with pytest.raises(DataError, match=r"(?s)sources\.code: 1 of \d+ lines.*code\.jsonl, line 121: not JSON"):
        ensure_prepared(config, run_root=tmp_path, workers=2)
    assert not (tmp_path / "tokens").exists()
    config.data.max_rejected_share = 0.01
    assert ensure_prepared(config, run_root=tmp_path, workers=1).sources["code"].train.num_tokens > 0


def test_the_command_prepares_says_what_was_made_and_finds_it_again(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.data.prepared_dir = str(tmp_path / "tokens")
    config.data.sources["prose"].paths = [str(tmp_path / "prose-1.jsonl")]
    assert main(["prepare", *command(config), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"tokenising prose, code: .* in 2 units of work", printed)
    assert re.search(r"prose +validation +4 documents", printed)
    assert main(["prepare", *command(config)]) == 0
    assert "tokenising" not in capsys.readouterr().out
    assert main(["check", *command(config)]) == 0


def test_a_folder_that_is_not_ours_is_named_and_never_advised_to_be_deleted(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign, run = tmp_path / "home", tmp_path / "run"
    for folder, files in ((foreign, ("letters",)), (run, ("config.yaml", "metrics.jsonl"))):
        folder.mkdir()
        for name in files:
            (folder / name).write_text("mine")
    (run / "order.json").write_text('{"prepared": "/data/tokens"}')
    for path, what in (
        (foreign, "is a folder that this program did not write; it holds letters"),
        (run, "is a run directory (its prepared data is in /data/tokens)"),
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "code.jsonl", "is a file, not a folder"),
    ):
        config.data.prepared_dir = str(path)
        for arguments in (["check", str(path)], ["prepare", *command(config)]):
            if arguments[0] == "prepare" and path.name == "nowhere":
                continue
            assert main(arguments) == 1
            printed = capsys.readouterr().err
            assert f"{path} is not a folder of prepared data: it {what}" in printed and "data.prepared_dir" in printed
            assert "elete" not in printed and "emove" not in printed
    assert (foreign / "letters").read_text() == (run / "config.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (".", r"data\.prepared_dir=\. is the working directory"),
        ("/", r"data\.prepared_dir=/ is the working directory \(.*\) or a folder above it"),
        ("..", r"needs a folder of its own"),
        ("", r"data\.prepared_dir= is empty. Give a path"),
    ],
)
def test_prepared_data_is_not_made_in_the_working_directory_or_above(
    place: str, message: str, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    config.data.prepared_dir = place
    before = sorted(tmp_path.iterdir())
    assert main(["prepare", *command(config)]) in (1, 2)
    assert re.search(message, capsys.readouterr().err)
    assert sorted(tmp_path.iterdir()) == before and not list((tmp_path / "here").iterdir())


def test_prepared_data_is_read_from_the_working_directory(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.data.prepared_dir = str(tmp_path / "tokens")
    ensure_prepared(config, run_root=tmp_path, workers=1)
    monkeypatch.chdir(tmp_path / "tokens")
    config.data.prepared_dir = "."
    assert ensure_prepared(config, run_root=tmp_path, workers=1).sources.keys() == config.data.sources.keys()
    assert main(["check", "."]) == 0


def test_a_folder_of_others_with_the_name_of_ours_in_the_making_is_left_alone(
    config: RunConfig, tmp_path: Path
) -> None:
    config.data.prepared_dir = str(tmp_path / "tokens")
    (tmp_path / "tokens.writing").mkdir()
    (tmp_path / "tokens.writing" / "novel.txt").write_text("mine")
    (tmp_path / "tokens.lock").write_text("mine too")
    with pytest.raises(DataError, match=r"made in .*tokens\.writing, but that is a folder .*it holds novel.txt"):
        ensure_prepared(config, run_root=tmp_path, workers=1)
    assert (tmp_path / "tokens.writing" / "novel.txt").read_text() == "mine"
    assert (tmp_path / "tokens.lock").read_text() == "mine too"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--workers", "0"], "--workers 0 must be at least 1"),
        (["--slurm-time", "1:00"], "--slurm-time needs --slurm-partition"),
        (["--slurm-partition", "p"], "--slurm-partition needs --slurm-time"),
        (["--slurm-partition", "p", "--slurm-time", "1", "--workers", "2"], "--workers is for this machine"),
        (["--slurm-partition", "p", "--slurm-time", "1", "--sbatch", "x"], "--sbatch x is not KEY=VALUE"),
    ],
)
def test_options_that_have_no_effect_are_refused(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", *arguments]) == 2
    assert reason in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_or_is_at_an_address_says_what_to_do(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    config.data.prepared_dir = str(tmp_path / "file" / "tokens")
    with pytest.raises(DataError, match=r"cannot be written: File exists.*data\.prepared_dir elsewhere"):
        ensure_prepared(config, run_root=tmp_path)
    config.data.prepared_dir = "memory://nowhere/tokens"
    with pytest.raises(DataError, match=r"memory://nowhere/tokens' is not there.*copy it to this address"):
        ensure_prepared(config, run_root=tmp_path)


def test_a_folder_copied_to_an_object_store_is_opened_and_checked_there(config: RunConfig, tmp_path: Path) -> None:
    import fsspec

    config.data.prepared_dir = str(tmp_path / "tokens")
    near = ensure_prepared(config, run_root=tmp_path)
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "tokens"), "/store/tokens", recursive=True)
    config.data.prepared_dir, config.data.verify = "memory://store/tokens", "full"
    far = ensure_prepared(config, run_root=tmp_path)
    for name, source in near.sources.items():
        count = source.train.num_tokens
        assert far.sources[name].train.window(0, count).tolist() == source.train.window(0, count).tolist()
        assert far.sources[name].validation_tokens.tolist() == source.validation_tokens.tolist()
    path = "/store/tokens/code/00000.train.bin"
    store.pipe(path, store.cat(path)[:-2])
    config.data.verify = "header"
    with pytest.raises(DataError, match=r"memory://store/tokens/code/00000\.train\.bin ends at byte"):
        ensure_prepared(config, run_root=tmp_path)


def test_a_folder_whose_text_vanishes_while_it_is_prepared_stops(config: RunConfig, tmp_path: Path) -> None:
    config.data.prepared_dir = str(tmp_path / "tokens")
    with making(config, run_root=tmp_path, say=print, given=None) as made:
        assert isinstance(made, Making)
        (tmp_path / "code.jsonl").unlink()
        from pretrain.data.shards import run_unit

        with pytest.raises(DataError, match=r"(?s)code: 1 file cannot be read to the end.*code\.jsonl.*No such file"):
            run_unit(made.writing, made.plan, made.plan.units[-1], tokenizer=made.tokenizer)


# Slurm


def test_the_array_runs_the_units_that_are_left_and_says_so_to_sbatch(config: RunConfig, tmp_path: Path) -> None:
    from pretrain.data.slurm import SlurmOptions, unit_array
    from pretrain.data.worker import TokeniseUnit

    config.data.prepared_dir, config.data.shard_bytes = str(tmp_path / "tokens"), 20_000
    options = SlurmOptions("cpu", "2:00:00", 7, {"account": "mine"})
    with making(config, run_root=tmp_path, say=print, given=None) as made:
        assert isinstance(made, Making)
        array = unit_array(made, options=options, finishing=["python", "-m", "x y"], unfinished=[1, 3])
        assert array.get_incomplete_ranks() == [1, 3] and array.world_size == len(made.plan.units)
        script = array.get_launch_file_contents(array.get_sbatch_args(2), "RUN")
        for line in ("partition=cpu", "time=2:00:00", "array=0-1%7", "account=mine", "cpus-per-task=1"):
            assert f"#SBATCH --{line}\n" in script
        assert "--qos" not in script
        root = Path(__file__).parents[3]
        assert f"export PYTHONPATH={root}" in script and array.finishing_script == "python -m 'x y'"
        (step,) = array.pipeline
        assert isinstance(step, TokeniseUnit)
        for rank in range(array.world_size):
            assert list(step(None, rank, array.world_size)) == []
            assert read_state(made.writing, made.plan.units[rank]).is_done
    by_array = tmp_path / "tokens"
    ensure_prepared(config, run_root=tmp_path)
    config.data.prepared_dir = str(tmp_path / "here")
    ensure_prepared(config, run_root=tmp_path, workers=1)
    assert digests(by_array) == digests(tmp_path / "here")


@pytest.mark.slow
def test_a_real_cluster_prepares_what_this_process_would(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which("sinfo") is None:
        pytest.skip("Slurm is not installed")
    found = subprocess.run(["sinfo", "-h", "-o", "%R"], capture_output=True, text=True, check=False)
    if found.returncode or not found.stdout.strip():
        pytest.skip("no Slurm cluster answers; set SLURM_CONF")
    config.data.shard_bytes, config.data.prepared_dir = 20_000, str(tmp_path / "here")
    config.data.sources["prose"].paths = [str(tmp_path / "prose-1.jsonl")]
    ensure_prepared(config, run_root=tmp_path)
    config.data.prepared_dir = str(tmp_path / "tokens")
    arguments = ["prepare", *command(config), "--slurm-partition", found.stdout.split()[0], "--slurm-time", "5:00"]
    good = (tmp_path / "code.jsonl").read_bytes()
    (tmp_path / "code.jsonl").write_bytes(good + b"{\n")
    assert main(arguments) == 0
    assert "submitted" in capsys.readouterr().out
    wait_for(lambda: not subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True).stdout.strip())
    assert not (tmp_path / "tokens").exists()  # a unit failed
    stamp = (tmp_path / "code.jsonl").stat()
    (tmp_path / "code.jsonl").write_bytes(good)
    assert stamp.st_size != len(good)
    assert main(arguments) == 0
    assert "submitted" in capsys.readouterr().out
    wait_for(lambda: (tmp_path / "tokens").exists())
    capsys.readouterr()
    assert main(arguments) == 0
    assert "complete" in capsys.readouterr().out
    ours, theirs = digests(tmp_path / "tokens"), digests(tmp_path / "here")
    assert {n: c for n, c in ours.items() if not n.endswith(".json")} == {
        n: c for n, c in theirs.items() if not n.endswith(".json")
    }


def wait_for(is_so: Callable[[], bool], *, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_processes_without_file_locks_that_prepare_at_once_end_with_one_folder(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_POLL_SECONDS", 0.02)
    without_flock(monkeypatch)
    config.data.prepared_dir = str(tmp_path / "tokens")
    context = multiprocessing.get_context("fork")
    crowd = [
        context.Process(target=ensure_prepared, args=(config,), kwargs={"run_root": tmp_path}) for _ in range(3)
    ]  # fmt: skip
    for process in crowd:
        process.start()
    for process in crowd:
        process.join()
    assert [process.exitcode for process in crowd] == [0, 0, 0]
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("tokens")) == ["tokens", "tokens.lock"]


def test_a_state_that_cannot_be_read_is_that_of_a_unit_not_begun(config: RunConfig, tmp_path: Path) -> None:
    config.data.prepared_dir = str(tmp_path / "tokens")
    with making(config, run_root=tmp_path, say=print, given=None) as made:
        assert isinstance(made, Making)
        unit = made.plan.units[0]
        for text in ("", "{", "[]", '{"key": "other"}', '{"key": "' + unit.key + '"}', '{"key": 1, "shards": 3}'):
            (made.writing / "state" / "00000.json").write_text(text)
            assert read_state(made.writing, unit) == UnitState(unit.key)
