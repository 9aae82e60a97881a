from bfmpipe.kernels._cpu import leave_one_out_float32 as leave_one_out_float32
from bfmpipe.kernels._cpu import leave_one_out_float64 as leave_one_out_float64

def unavailable() -> str | None: ...
