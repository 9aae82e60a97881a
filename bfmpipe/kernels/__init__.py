"""Compiled operations: one a module, each with its gradient and its reference in plain torch."""

from bfmpipe.kernels.extension import build_info
from bfmpipe.kernels.leave_one_out import LeaveOneOut, leave_one_out, leave_one_out_reference

__all__ = ["LeaveOneOut", "build_info", "leave_one_out", "leave_one_out_reference"]
