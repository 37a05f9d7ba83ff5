"""What we use of DeepSpeed that is not public: each must still be there, and mean the same."""

from __future__ import annotations

import importlib
import inspect

import pytest

# (module, dotted attribute, why we need it, what its source must still say)
PRIVATE = [
    (
        "deepspeed.runtime.zero.stage3",
        "DeepSpeedZeroOptimizer_Stage3.get_local_fp32_param",
        "where stage 3 keeps a parameter's part: on a GPU the public function gives a copy of what is offloaded",
        "_get_fp32_opt_state_partition",
    ),
    (
        "deepspeed.runtime.zero.stage3",
        "DeepSpeedZeroOptimizer_Stage3._get_fp32_opt_state_partition",
        "grad_position: parameter -> (group, offset, elements) in fp32_partitioned_groups_flat",
        "group_idx, dest_offset, num_elements = self.grad_position[self.get_param_id(param)]",
    ),
    (
        "deepspeed.utils.tensor_fragment",
        "tensor_fragment.get_lp_grad_fragment",
        "the reduced gradient of a parameter's part at stages 1 and 2",
        "index_in_param_group",
    ),
    (
        "deepspeed.runtime.zero.stage_1_and_2",
        "DeepSpeedZeroOptimizer.step",
        "a norm that is not finite leaves the step out and is reported as infinite",
        'self._global_grad_norm = float("inf")',
    ),
    (
        "deepspeed.runtime.zero.stage3",
        "DeepSpeedZeroOptimizer_Stage3._loss_scale_update_and_overflow_cleanup",
        "the same at stage 3",
        'self._global_grad_norm = float("inf")',
    ),
    (
        "deepspeed.runtime.zero.parameter_offload",
        "DeepSpeedZeRoOffload._register_deepspeed_module",
        "stage 3 gathers in forward hooks, which scoring takes away and puts back",
        "register_forward_pre_hook",
    ),
    (
        "deepspeed.comm.torch",
        "build_shm_op",
        "no compiler is needed where __compatible_ops__ says that it is not compatible",
        "__compatible_ops__",
    ),
]


@pytest.mark.parametrize(("module", "attribute", "reason", "text"), PRIVATE, ids=[entry[1] for entry in PRIVATE])
def test_deepspeed_still_has(module: str, attribute: str, reason: str, text: str) -> None:
    thing = importlib.import_module(module)
    for name in attribute.split("."):
        thing = getattr(thing, name)
    assert text in inspect.getsource(thing), reason
