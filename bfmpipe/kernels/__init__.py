"""Compiled operations: one a module, each with its gradient and its reference in plain torch."""

from bfmpipe.kernels.extension import build_info
from bfmpipe.kernels.leave_one_out import LeaveOneOut, leave_one_out, leave_one_out_reference
from bfmpipe.kernels.sf_evaluate import (
    Embedding,
    Linear,
    Network,
    sf_evaluate,
    sf_evaluate_reference,
    sf_evaluate_rows,
)

__all__ = [
    "Embedding",
    "LeaveOneOut",
    "Linear",
    "Network",
    "build_info",
    "leave_one_out",
    "leave_one_out_reference",
    "sf_evaluate",
    "sf_evaluate_reference",
    "sf_evaluate_rows",
]
