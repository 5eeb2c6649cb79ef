"""What of a run would not come out the same again, by name, and the settings of the kernels that decide it.

After torch's notes on ``torch.use_deterministic_algorithms``, for the operations that gradstab's networks use.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from gradstab.config import Config


def nondeterministic(config: Config, device: torch.device) -> list[str]:
    """What may give other numbers when the same run is repeated on the same machine with as many threads.

    Empty on the CPU, whose kernels add in a fixed order, and with ``deterministic=true``, under which torch raises
    where an operation has no deterministic version.
    """
    if device.type == "cpu" or config.deterministic:
        return []
    if device.type == "mps":
        return ["every operation: torch promises nothing of MPS"]
    found = ["matrix products: cuBLAS chooses its workspace, and with it the order of sums (CUBLAS_WORKSPACE_CONFIG)"]
    if config.model.name != "deep_mlp":
        found.append("convolutions: cuDNN may add a kernel's gradient in any order")
    if config.model.name == "lenet5_1998":
        found.append("C3's table of connections: index_copy and the backward pass of its indexing")
    if config.constraint.name == "weight_norm" and config.measure.name != "none":
        found.append("recorded norms of layers: index_add_ sums their parameters' by atomic additions")
    if config.optimizer.name == "coordinate_descent" and config.optimizer.knobs["order"] == "gauss_southwell":
        found.append("the choice of a block: index_add_ sums its parameters' norms by atomic additions")
    return found


def kernels(device: torch.device) -> dict[str, Any]:
    """The settings that decide which kernels run, and so the last digits."""
    found: dict[str, Any] = {"deterministic_algorithms": torch.are_deterministic_algorithms_enabled()}
    if device.type == "cuda":
        found |= {
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "cudnn_tf32": torch.backends.cudnn.allow_tf32,
            "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
            "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        }
    return found
