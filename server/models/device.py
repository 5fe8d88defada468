"""Which device a model goes to, and what its process sets before it touches a GPU."""

from __future__ import annotations

import torch

from server.config import ModelConfig
from server.models.configs import first_line
from server.models.describe import refuse
from server.out_of_memory import is_memory_error

ADVICE = {
    "cpu": "Lower kv_cache_gib or max_batch_tokens, or set dtype to bfloat16 or quantize to int8.",
    "cuda": "Lower kv_cache_gib or max_batch_tokens, set dtype to bfloat16, or choose another device.",
}


def choose_device(model: ModelConfig) -> torch.device:
    """The CPU, or a CUDA device with its index."""
    if model.device == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    device = torch.device(model.device)
    if device.type != "cuda":
        return device
    index = device.index or 0
    if index >= torch.cuda.device_count():
        raise refuse(f"Model {model.name} asks for {model.device}, which is not here. Set its device to auto or cpu.")
    return torch.device("cuda", index)


def use_device(device: torch.device) -> None:
    """Make a GPU this process's current one. Call it before anything else touches CUDA."""
    if device.type != "cuda":
        return
    # Streams, graphs and kernels of other libraries belong to the current device, not to that of their tensors.
    torch.cuda.set_device(device)
    # cuDNN's attention builds a plan for each new shape and keeps it: tens of milliseconds each, and ever more memory.
    torch.backends.cuda.enable_cudnn_sdp(False)


def raise_if_does_not_fit(error: Exception, model: ModelConfig, device: torch.device) -> None:
    """Say in words that ``model`` needs more memory than there is, where that is what ``error`` means."""
    if is_memory_error(error):
        raise refuse(
            f"Model {model.name} does not fit the memory of {device} ({first_line(error)}). {ADVICE[device.type]}"
        ) from error
