"""What whole runs need: a folder with a small text and a `data=own` that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("work")
    runs.write_text(path)
    return path
