"""float32 products on a CPU, by whichever of torch's two libraries is the faster there.

torch multiplies float32 matrices by MKL, which on AMD's processors leaves half of AVX-512 unused.
oneDNN, which comes with torch too, does not: on Zen 5 it has 2.1 times the rate, to the same
precision. torch hands it float32 only where products may be rounded to bfloat16; it makes use of
that on processors with a matrix unit for bfloat16 alone, which a product tells.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch


@contextmanager
def fast_float32() -> Iterator[None]:
    """Products in the block are by oneDNN where that is faster and as exact; else nothing changes.

    A precision that was set for oneDNN stays in force. torch has one setting for all threads, and
    `torch.get_float32_matmul_precision`, which the compiler asks, is refused inside the block.
    """
    matmul = _matmul()
    if matmul is None or matmul.fp32_precision != "none" or not onednn_is_better():
        yield
        return
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = "none"


@cache
def onednn_is_better() -> bool:
    """Whether this is a processor of AMD with AVX-512 on which oneDNN keeps float32.

    Asked where no precision is set for oneDNN.
    """
    matmul = _matmul()
    if matmul is None or not torch.backends.mkldnn.is_available():
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not _is_amd():
        return False
    matmul.fp32_precision = "bf16"
    try:
        return _products_are_exact()
    finally:
        matmul.fp32_precision = "none"


def _matmul() -> Any:
    """torch's settings of oneDNN's products; None before torch 2.9."""
    return getattr(torch.backends.mkldnn, "matmul", None)


def _is_amd() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text("utf-8", "replace")


def _products_are_exact() -> bool:
    """Every form that training has: plain, of several heads, transposed as in gradients."""
    generator = torch.Generator().manual_seed(0)
    for n in (64, 256):
        x, w = (torch.randn(2, n, n, generator=generator) for _ in range(2))
        for a, b in ((x, w), (x.mT, w), (x, w.mT), (x[0], w[0])):
            exact = a.double() @ b.double()
            if (a @ b - exact).norm() > 1e-6 * exact.norm():
                return False
    return True
