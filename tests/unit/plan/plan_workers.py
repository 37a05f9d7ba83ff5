"""What tests of plans need Megatron-core for, in one process: importing it takes longer than all the rest."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import tempfile
from pathlib import Path
from typing import Any

from pretrain.config.load import compose
from pretrain.engine.layout import ParallelLayout
from tests.unit.config.test_recipes import RECIPES
from tests.unit.plan import memory_workers
from tests.unit.plan.cases import COVERED, FORWARDS, LINES, MODEL, ONE_MICROBATCH, OPTIMIZERS, STEPS, small, spec_of


def measure(_: Any) -> dict[str, Any]:
    """All that needs Megatron-core."""
    from pretrain.engine.sharded.dry_run import build_shard

    seven = compose(["experiment=amber_7b", "parallel.tensor=8", "parallel.pipeline=4"])
    spec = spec_of(seven)
    return {
        "7b": {
            size: [
                build_shard(seven, spec, rank=rank * size // 4, world_size=size).num_parameters for rank in (0, 1, 3)
            ]
            for size in (224, 4096)
        },
        "covered": [_covered(overrides, world_size) for overrides, world_size in COVERED],
        "faults": _faults(),
        "forwards": [_forward(*case) for case in FORWARDS],
        "optimizers": [_optimizer(*case) for case in OPTIMIZERS],
        "lines": [_line(*arguments) for arguments in LINES],
        "recipes": {name: _recipe(name) for name in RECIPES},
        "steps": memory_workers.measure([[*MODEL, *case] for case in STEPS]),
    }


def _recipe(name: str) -> tuple[int, int, bool]:
    """Parameters, steps and whether it fits its devices, of an experiment on its own cluster."""
    from pretrain.plan.plan import make_plan

    config = compose([f"experiment={name}"])
    world_size = config.cluster.nodes * config.cluster.processes_per_node
    plan = make_plan(config, world_size=world_size, layouts=0)
    assert plan.device is not None
    return plan.parameters, plan.steps, plan.device.fits


def _covered(overrides: tuple[str, ...], world_size: int) -> tuple[bool, int]:
    from pretrain.engine.sharded.dry_run import build_shard
    from pretrain.plan.plan import make_plan

    config = small(overrides)
    plan = make_plan(config, world_size=world_size, ranks="all")
    shards = [build_shard(config, spec_of(config), rank=one.rank, world_size=world_size) for one in plan.ranks]
    return plan.covered, sum(block.numel for shard in shards for block in shard.blocks if block.is_owner)


def _faults() -> tuple[bool, str, str]:
    from pretrain.engine.sharded.dry_run import build_shard, check_shard, covers_model
    from pretrain.errors import EngineError

    config = small(("parallel.pipeline=2",))
    spec, layout = spec_of(config), ParallelLayout.create(config, world_size=2)
    first = build_shard(config, spec, rank=0, world_size=2)
    messages = []
    for act in (
        lambda: covers_model([first, dataclasses.replace(first, rank=1)], layout),
        lambda: check_shard(dataclasses.replace(first, num_parameters=first.num_parameters - 1), spec, layout),
    ):
        try:
            act()
        except EngineError as error:
            messages.append(str(error))
    return covers_model([first], layout), messages[0], messages[1]


def _forward(overrides: tuple[str, ...], world_size: int, rank: int) -> int:
    """Bytes that autograd keeps of one microbatch's forward, on a fake process group with real tensors."""
    import torch
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from pretrain.engine.device import prepare_device
    from pretrain.engine.kernels import choose
    from pretrain.engine.sharded import groups
    from pretrain.model.gpt import build_chunks, recompute_options, transformer_config

    config = small((*overrides, *ONE_MICROBATCH))
    spec, parallel = spec_of(config), config.parallel
    prepare_device()
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    groups.start(config)
    kernels = choose(config, torch.device("cpu"))
    megatron = transformer_config(config, spec, kernels, **recompute_options(config, kernels))
    [model] = build_chunks(config, spec, megatron)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    length = config.train.sequence_length // parallel.context
    tokens = torch.zeros(8, length, dtype=torch.long)
    if not model.pre_process:
        split = parallel.tensor if parallel.sequence else 1
        model.set_input_tensor(
            torch.randn(length // split, 8, spec.hidden_size, dtype=megatron.params_dtype, requires_grad=True)
        )
    for module in model.modules() if kernels.layers == "plain" else ():
        if isinstance(module, torch.nn.RMSNorm):
            module.forward = functools.partial(_fused_norm(), module.weight)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(tokens, torch.arange(length).expand(8, -1), None, labels=tokens)
    if not model.post_process:
        keep(out)
    groups.stop()
    dist.destroy_process_group()
    # Looked at when all is computed: what is released and made again has given its address to others meanwhile.
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    return sum(size for address, size in storages.items() if address not in weights)


def _fused_norm() -> Any:
    """RMSNorm that keeps what CUDA's kernel keeps; on CPU torch composes it, in fp32, of steps that keep more."""
    import torch

    class FusedNorm(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            reciprocal = x.float().pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt()
            ctx.save_for_backward(weight, x, reciprocal)
            return (x * reciprocal).to(x.dtype) * weight

        @staticmethod
        def backward(ctx: Any, *_: torch.Tensor) -> Any:
            raise NotImplementedError("only what forward keeps is looked at")

    return FusedNorm.apply


def _optimizer(overrides: tuple[str, ...], world_size: int) -> tuple[int, int]:
    """Bytes of weights, gradients, master weights and moments: planned, and in a real engine of a fake job."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from pretrain.engine.device import prepare_device
    from pretrain.engine.megatron.engine import MegatronEngine
    from pretrain.plan.plan import make_plan

    config = small(overrides)
    memory = make_plan(config, world_size=world_size).ranks[0].memory_bytes
    dist.init_process_group("fake", rank=0, world_size=world_size, store=FakeStore())
    engine = MegatronEngine(config, spec_of(config), prepare_device())
    state = engine.sharded_state()
    state.ensure_moments()
    tensors = [parameter.data for parameter in state._parameters]
    tensors += [buffer.grad_data for wrapper in engine._wrappers for buffer in wrapper.buffers]
    tensors += [view for _, _, views in state._ranges() for view in views.values()]
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    engine.close()
    dist.destroy_process_group()
    return memory.weights + memory.gradients + memory.optimizer, sum(held.values())


def _line(*arguments: str) -> tuple[int, str, dict[str, Any]]:
    """A command line of plans: exit code, what it prints, what it writes."""
    from pretrain.plan.__main__ import main

    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(printed):
        file = Path(folder) / "plan.json"
        code = main([*arguments, "--json", str(file)])
        return code, printed.getvalue(), json.loads(file.read_text())
