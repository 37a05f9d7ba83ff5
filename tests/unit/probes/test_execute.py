"""Programs that pass, fail, and misbehave."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from probes import execute
from probes.execute import code_eval, passes, with_programs

SOLUTION = "def add(a, b):\n    return a + b\n"
TEST = "assert add(2, 3) == 5\nassert add(0, -1) == -1"


def test_a_solution_passes_and_a_wrong_one_does_not():
    assert passes(f"{SOLUTION}\n{TEST}")
    assert not passes(f"{SOLUTION.replace('+', '*')}\n{TEST}")
    assert not passes("this is no program")


@pytest.mark.parametrize(
    "ending",
    ["raise SystemExit(0)", "import os; os._exit(0)", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"],
)
def test_a_program_that_ends_before_its_test_does_not_pass(ending: str):
    assert not passes(f"{ending}\n{TEST}")


def test_programs_may_print_and_read_nothing():
    assert passes("import sys\nprint('x' * 10**6)\nassert sys.stdin.read() == ''")


def test_an_endless_loop_is_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(execute, "CPU_SECONDS", 1)
    assert not passes("while True: pass")
    assert not passes("import time\ntime.sleep(100)", wall_seconds=1.0)


def test_memory_and_files_have_limits():
    assert not passes(f"x = bytearray({execute.MEMORY_BYTES})")
    assert not passes(f"with open('big', 'wb') as file: file.write(bytes({execute.FILE_BYTES + 1}))")
    assert not passes("files = [open(f'{i}', 'w') for i in range(200)]")


def test_children_do_not_outlive_their_program(tmp_path: Path):
    """Forking is forbidden for others than root, for whom children are ended with the group."""
    left = tmp_path / "left"
    program = (
        f"import os, time\nif os.fork() == 0:\n    time.sleep(2)\n    open({str(left)!r}, 'w').close()\n    os._exit(0)"
    )
    assert passes(program) == (os.geteuid() == 0)
    time.sleep(2.5)
    assert not left.exists()


def test_a_program_sees_an_empty_folder_and_hardly_any_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET_KEY", "x")
    program = "import os\nassert 'SECRET_KEY' not in os.environ and os.listdir('.') == ['program.py']"
    assert passes(program)


def test_code_eval_gives_pass_at_k_and_runs_each_program_once(monkeypatch: pytest.MonkeyPatch):
    ran: list[str] = []
    monkeypatch.setattr(execute, "passes", lambda program: not ran.append(program) and "good" in program)
    problems = [["good", "bad", "bad 2"], ["bad 3", "good", "good 2"]]
    found = with_programs(lambda: code_eval(["t", "u"], problems, k=[1, 2, 10]))
    # chances that one, or one of two, of three candidates drawn without putting back is good
    assert found == pytest.approx({"pass@1": (1 / 3 + 2 / 3) / 2, "pass@2": (2 / 3 + 1) / 2})
    assert sorted(ran) == sorted(f"{c}\n{t}" for t, cs in zip("tu", problems, strict=True) for c in cs)


def test_nothing_runs_outside_of_with_programs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(execute, "passes", lambda program: 1 / 0)
    assert code_eval(["t"], [["good"]], k=[1]) == {"pass@1": 0.0}
