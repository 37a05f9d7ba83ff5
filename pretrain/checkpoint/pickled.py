"""Weights in `pytorch_model*.bin`, as Amber's and OpenLLaMA's checkpoints are published: read here, written nowhere.

Checkpoints and exports of ours hold no pickle. This one is read because what is published cannot be changed, and only
by torch's restricted unpickler: it builds tensors and plain containers, and refuses a file that asks for anything
else before that is called. What comes of it must be one dictionary of dense tensors.
"""

from __future__ import annotations

import pickle
import re
import struct
from pathlib import Path

import torch
from torch import Tensor

from pretrain.errors import CheckpointError

_REMEDY = "Download the file again, or save the model with save_pretrained of transformers, as safetensors."
# What a damaged or hostile file makes the unpickler raise, besides its own error.
_DAMAGE = (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, EOFError)


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; they are mapped, so that a tensor takes memory when it is read.

    Raises:
        CheckpointError: the file is missing or damaged, or holds anything but dense tensors of numbers.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"asks for {asked[1]}, which tensors do not need" if asked else "is no dictionary of tensors"
        raise CheckpointError(
            f"{path} {what}; it was not read further. {_REMEDY}"
        ) from None  # torch advises to trust it
    except (*_DAMAGE, struct.error) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} cannot be read: {said}. {_REMEDY}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise CheckpointError(f"{path} is no dictionary of tensors by name. {_REMEDY}")
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise CheckpointError(f"{path}: {name} is no dense tensor. {_REMEDY}")
        if not tensor.is_floating_point():
            raise CheckpointError(f"{path}: {name} is {str(tensor.dtype)[6:]}, no floating-point numbers. {_REMEDY}")
    return found
