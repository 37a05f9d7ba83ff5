"""A file in the working directory that Python would import in place of a package of this program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ranks import environment

CHECK = "from pretrain.shadowed import require_own_package; require_own_package()"


def _run(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=cwd, env={**environment(), **variables}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", ["probes.py", "probes/__init__.py"])
def test_probes_in_the_working_directory_are_named_before_anything_is_loaded(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("raise SystemExit('imported')")
    for module, words in (("pretrain", ["experiment=demo"]), ("pretrain.checkpoint", ["list", "."])):
        done = _run("-m", module, *words, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert f"{path} is in the way" in done.stderr and "PYTHONSAFEPATH=1" in done.stderr
        assert "Traceback" not in done.stderr
    assert _run("-c", CHECK, cwd=tmp_path, PYTHONSAFEPATH="1").returncode == 0
    path.unlink()
    assert _run("-c", CHECK, cwd=tmp_path).returncode == 0, "a folder without Python does not hide a package"


def test_a_script_called_pretrain_is_named_by_the_prober(tmp_path: Path) -> None:
    (tmp_path / "pretrain.py").write_text("raise SystemExit('imported')")
    done = _run("-m", "probes", "--help", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}/pretrain.py is found as pretrain") and "rename" in done.stderr
