"""One process builds, runs and measures for all tests of plans."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.ranks import run_ranks


@pytest.fixture(scope="session")
def measured() -> dict[str, Any]:
    return run_ranks("tests.unit.plan.plan_workers:measure", 1)[0]
