"""The compiled modules: `_cpu`, which is always there, and `_cuda`, which may not be."""

import hashlib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from bfmpipe.types import UserError

try:
    import bfmpipe.kernels._cpu as _cpu
except ImportError as error:
    raise UserError(
        f"bfmpipe's compiled kernels cannot be imported ({error}); "
        "build them with `pip install -e .` in the source checkout."
    ) from error

_CPU = torch.device("cpu")
_CSRC = Path(__file__).parents[2] / "csrc"

SF_WIDTH: int = _cpu.sf_width
"""Widths that sf_evaluate's CPU kernel takes are multiples of this."""
SF_MAX_LAYERS: int = _cpu.sf_max_layers
SF_MAX_HEADS: int = _cpu.sf_max_heads


def launch(name: str, device: torch.device, *arguments: Any) -> None:
    """Call function `name` of the module for `device`, on torch's current stream there.

    Nothing is checked: the arguments are addresses and sizes. UserError where no module serves
    the device.
    """
    if device == _CPU:
        getattr(_cpu, name)(*arguments, 0)
    elif device.type == "cuda":
        function = getattr(_cuda(), name)
        with torch.cuda.device(device):
            function(*arguments, torch.cuda.current_stream().cuda_stream)
    else:
        raise UserError(f"bfmpipe's kernels take cpu and cuda tensors, not {device.type} ones.")


def check_build(csrc: Path = _CSRC) -> bool:
    """Refuse kernels that were built from other sources than those of the checkout.

    False where there are no sources beside the package, as in an installed wheel, and so nothing
    to compare.
    """
    if not (csrc / "CMakeLists.txt").is_file():
        return False
    files = sorted(path.relative_to(csrc).as_posix() for path in csrc.rglob("*") if path.is_file())
    lines = "".join(f"{_sha256((csrc / name).read_bytes())}  {name}\n" for name in files)
    if _cpu.source_digest() != _sha256(lines.encode()):
        raise UserError(
            "bfmpipe's compiled kernels were built from other sources than those in csrc/; build "
            "them again with `make install` or `pip install -e .`"
        )
    return True


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def build_info() -> dict[str, str | bool]:
    """Say what runs: CPU instruction set, CUDA kernels built or not, digest of csrc/."""
    return {
        "instruction_set": _cpu.instruction_set(),
        "cuda": _find_cuda() is not None,
        "source_digest": _cpu.source_digest(),
    }


@cache
def _find_cuda() -> ModuleType | None:
    try:
        import bfmpipe.kernels._cuda as module
    except ModuleNotFoundError:
        return None
    return module


def cuda_problem() -> str | None:
    """Say in one sentence why the CUDA kernels cannot run here; None where they can."""
    reason, mend = without_cuda() or ("", "")
    return f"{reason}; move the tensors to the CPU{mend and f', or {mend}'}." if reason else None


def without_cuda() -> tuple[str, str] | None:
    """Why the CUDA kernels cannot run here, and what would help; None where they can."""
    module = _find_cuda()
    if module is None:
        mend = "install nvcc and reinstall with BFMPIPE_CUDA=ON"
        return "bfmpipe was built without CUDA kernels", mend
    if reason := module.unavailable():
        return f"bfmpipe's CUDA kernels cannot use a GPU here ({reason})", ""
    return None


@cache
def _cuda() -> ModuleType:
    if problem := cuda_problem():
        raise UserError(problem)
    module = _find_cuda()
    assert module is not None  # else there was a problem
    return module
