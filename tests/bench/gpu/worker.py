"""A contender's process: reads its task, trains under the clock, writes what it saw.

Called as `python -m tests.bench.gpu.worker FOLDER`; `task.json` in the folder becomes `result.json`. A missing package,
missing memory and a layout that is refused are results too: the parent records them and goes on with the next task.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
import traceback
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

from pretrain.errors import FinelineError
from tests.bench.gpu.task import Task


def main() -> None:
    """Entry of the process."""
    folder = Path(sys.argv[1])
    task = Task.from_json(json.loads((folder / "task.json").read_text()))
    (folder / "result.json").write_text(json.dumps(_result(task, folder)))


def _result(task: Task, folder: Path) -> dict[str, Any]:
    try:
        import torch

        from tests.bench.gpu.clock import Clock
        from tests.bench.gpu.machine import versions

        torch.manual_seed(0)
        contender = importlib.import_module(f"tests.bench.gpu.{task.contender}")
        clock = Clock(task)
        told = contender.train(task, folder, clock)
        loss = told.get("loss")
        assert loss is None or math.isfinite(loss), f"the loss is {loss}"
        return {"status": "measured", **clock.figures(), **told, "versions": versions(contender.PACKAGES)}
    except (ModuleNotFoundError, PackageNotFoundError) as error:
        return {"status": "missing", "reason": str(error)}
    except FinelineError as error:
        return {"status": "refused", "reason": str(error)}
    except Exception as error:
        text = traceback.format_exc()
        memory = type(error).__name__ == "OutOfMemoryError" or "out of memory" in str(error).lower()
        return {"status": "out of memory" if memory else "failed", "reason": text[-1500:]}


if __name__ == "__main__":
    main()
