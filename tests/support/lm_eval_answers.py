"""What lm-eval's own HFLM says of an exported folder, item by item."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def lm_eval_answers(export: Path, limits: dict[str, int]) -> dict[str, tuple[dict[tuple[int, int], Any], float]]:
    """By task: (log-likelihood, greedy) by item and choice, and accuracy, in fp32 on the CPU.

    Args:
        export: a Hugging Face folder.
        limits: bundled tasks, and how many items of each.
    """
    import yaml
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=str(export), device="cpu", dtype="float32", batch_size=16, logits_cache=False)
    manager = TaskManager(include_defaults=False)
    found: dict[str, tuple[dict[tuple[int, int], Any], float]] = {}
    for task, limit in limits.items():
        short = task.removeprefix("fineline_")
        folder = Path(__file__).parents[2] / "probes" / "tasks" / short
        text = (folder / f"{short}.yaml").read_text().replace("${TASK_DIR}", str(folder))
        results = simple_evaluate(
            model, tasks=[yaml.safe_load(text)], task_manager=manager, limit=limit, bootstrap_iters=0, log_samples=True
        )
        answers = {
            (sample["doc_id"], choice): response[0]
            for sample in results["samples"][task]
            for choice, response in enumerate(sample["resps"])
        }
        found[task] = (answers, results["results"][task]["acc,none"])
    return found
