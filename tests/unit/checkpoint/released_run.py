"""A run directory that can be released, made without training: weights of transformers' model, and a record."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from pretrain.checkpoint.blocks import Block, cut
from pretrain.checkpoint.reference import take_reference
from pretrain.config.load import to_yaml
from pretrain.config.run import RunConfig, RunSection, TrainSection
from pretrain.data.manifest import TOKENIZER_NAME
from pretrain.model.names import megatron_shapes, megatron_tensor
from tests.unit.checkpoint.live import Live, make_model, make_spec
from tests.unit.checkpoint.ranks import make_meta, save

STEPS = (0, 10, 20, 25)


def make_run(directory: Path, tokenizer_model: Path, *, steps: tuple[int, ...] = STEPS, **checkpoint: object) -> Path:
    """A run of 25 steps that saved at every tenth, and at the first and the last; weights differ from step to step."""
    config = RunConfig(run=RunSection(name="mine"), train=TrainSection(steps=25, global_batch_size=4))
    config.checkpoint = dataclasses.replace(config.checkpoint, early=[0], every="10 steps", **checkpoint)
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(to_yaml(config))
    (directory / TOKENIZER_NAME).write_bytes(tokenizer_model.read_bytes())
    spec = make_spec()
    for step in steps:
        model = make_model(spec)
        weights = {name: tensor * (1 + step / 100) for name, tensor in model.state_dict().items()}
        model.load_state_dict(weights)
        chunks = []
        for key, shape in megatron_shapes(spec).items():
            whole = megatron_tensor(key, weights.__getitem__, spec)
            chunks += cut([Block(key, shape, (0,) * len(shape), shape)], 0, {"param": whole.reshape(-1)})
        reference = take_reference(Live(model), vocab_size=spec.vocab_size, compute="fp32")
        meta = dataclasses.replace(make_meta(step, spec=spec), reference=reference)
        save(directory / "checkpoints", step, [chunks], meta=meta, kinds=("param",))
    return directory


def score(step: int, value: float, *, task: str = "arc", metric: str = "acc", **fields: object) -> str:
    """A line of `probes.jsonl`."""
    row = {"step": step, "suite": "own", "task": task, "domain": "knowledge", "num_fewshot": 5, "metric": metric}
    return json.dumps({**row, "value": value, "stderr": 0.01, "num_items": 100, "plan_hash": "p", **fields}) + "\n"
