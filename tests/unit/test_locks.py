"""One policy for all locks, with and without flock: one holder, and a lock ends with its holder."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from pretrain import locks
from pretrain.locks import Held, exclusive, has_ended, process_name
from tests.support.file_systems import without_flock


@pytest.fixture(params=[True, False], ids=["flock", "claims"])
def has_flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(locks, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(locks, "_TOUCH_SECONDS", 0.05)
    if not request.param:
        without_flock(monkeypatch)
    return bool(request.param)


@pytest.fixture
def start() -> Iterator[Callable[..., multiprocessing.Process]]:
    """Starts a process and waits until it holds its lock."""
    context = multiprocessing.get_context("fork")
    started: list[multiprocessing.Process] = []

    def begin(work: Callable[..., None], *arguments: object) -> multiprocessing.Process:
        ready = context.Event()
        process = context.Process(target=work, args=(*arguments, ready))
        process.start()
        started.append(process)  # type: ignore[arg-type]
        assert ready.wait(10)
        return process  # type: ignore[return-value]

    yield begin
    for process in started:
        process.kill()
        process.join()


def _hold_for_a_while(path: Path, mark: Path, ready: Event) -> None:
    with exclusive(path):
        ready.set()
        time.sleep(0.4)
        mark.write_text("done")


def _hold(path: Path, ready: Event) -> None:
    lock = Held(path)
    assert lock.take()
    ready.set()
    time.sleep(60)


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_lock_is_held_by_one_and_ends_with_its_holder(
    has_flock: bool, is_killed: bool, tmp_path: Path, start: Callable[..., multiprocessing.Process]
) -> None:
    mark, waited = tmp_path / "mark", []
    holder = start(_hold_for_a_while, tmp_path / "a.lock", mark)
    if is_killed:
        assert holder.pid is not None
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
    with exclusive(tmp_path / "a.lock", on_wait=lambda: waited.append(1)):
        assert mark.exists() == (not is_killed)
    assert waited == ([1] if not (is_killed and has_flock) else [])
    holder.join()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a.lock"] + ["mark"] * (not is_killed))


@pytest.mark.usefixtures("has_flock")
def test_a_lock_that_is_tried_is_refused_while_it_is_held_and_names_its_holder(
    tmp_path: Path, start: Callable[..., multiprocessing.Process]
) -> None:
    holder = start(_hold, tmp_path / "a.lock")
    lock = Held(tmp_path / "a.lock")
    assert not lock.take()
    assert lock.holder() == f"process {holder.pid} on {os.uname().nodename}"
    holder.kill()
    holder.join()
    assert lock.take()
    assert lock.holder() == f"process {os.getpid()} on {os.uname().nodename}"
    assert not Held(tmp_path / "a.lock").take()
    lock.release()
    lock.release()
    assert Held(tmp_path / "a.lock").take()


@pytest.mark.usefixtures("has_flock")
def test_a_lock_nobody_refers_to_is_released(tmp_path: Path) -> None:
    assert Held(tmp_path / "a.lock").take()
    assert Held(tmp_path / "a.lock").take()


@pytest.mark.usefixtures("has_flock")
def test_both_kinds_of_lock_keep_each_other_out(tmp_path: Path) -> None:
    with exclusive(tmp_path / "a.lock"):
        assert not Held(tmp_path / "a.lock").take()
    lock = Held(tmp_path / "a.lock")
    assert lock.take()
    with pytest.raises(TimeoutError), exclusive(tmp_path / "a.lock", on_wait=_give_up):
        pass


def _give_up() -> None:
    raise TimeoutError


def test_a_forked_child_does_not_release_the_claim_of_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_flock(monkeypatch)
    lock = Held(tmp_path / "a.lock")
    assert lock.take()
    child = multiprocessing.get_context("fork").Process(target=lock.release)
    child.start()
    child.join()
    assert (tmp_path / "a.lock.claim").exists()
    lock.release()
    assert not (tmp_path / "a.lock.claim").exists()


@pytest.mark.parametrize("is_touched", [True, False])
def test_a_claim_of_another_machine_is_taken_over_when_nobody_touches_it(
    is_touched: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(locks, "_STALE_SECONDS", 0.3)
    without_flock(monkeypatch)
    claim = tmp_path / "a.lock.claim"
    claim.write_text("12.34.another-host 5 6")
    started = time.monotonic()
    if is_touched:
        command = f"import os, time; time.sleep(0.1); os.utime({str(claim)!r})"
        with subprocess.Popen([sys.executable, "-c", command]):
            monkeypatch.setattr(locks, "_STALE_SECONDS", 30)
            assert not Held(tmp_path / "a.lock").take()
        assert claim.read_text() == "12.34.another-host 5 6"
        return
    with exclusive(tmp_path / "a.lock"):
        assert claim.read_text() != "12.34.another-host 5 6"
    assert time.monotonic() - started >= 0.3 and not claim.exists()


def test_only_a_process_of_this_machine_can_be_known_to_have_ended() -> None:
    number, _, place = process_name().partition(".")
    ended = multiprocessing.get_context("fork").Process(target=os.getpid)
    ended.start()
    ended.join()
    assert not has_ended(process_name())
    assert has_ended(f"{ended.pid}.{place}")
    assert not has_ended(f"{ended.pid}.another-host") and not has_ended(f"{ended.pid}.1.{place}")
    assert not has_ended("") and not has_ended(f"x{number}.{place}")


@pytest.mark.usefixtures("has_flock")
def test_a_folder_that_is_missing_is_an_error_of_the_file_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), exclusive(tmp_path / "missing" / "a.lock"):
        pass
