"""What the benchmarks share: fair timing, and the peaks of the machine that they run on."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from bfmpipe.types import UserError


def start(main: Callable[..., object]) -> None:
    """Run a benchmark with the command line's arguments; bad input ends it with one sentence."""
    try:
        sys.exit(main(*sys.argv[1:]) or 0)
    except UserError as error:
        sys.exit(f"error: {error}")


class Seconds(NamedTuple):
    wall: float
    cpu: float


def time_alternately(
    calls: Mapping[str, Callable[[], object]], *, rounds: int = 7, block: float = 0.02
) -> dict[str, Seconds]:
    """Median seconds a call. The calls take turns in blocks of at least `block` seconds, so that
    what else the machine does falls on all of them."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    times: dict[str, list[Seconds]] = {name: [] for name in calls}
    repeats = {}
    for name, call in calls.items():
        call()  # caches, autotuning, compilation
        repeats[name] = max(1, round(block / _time(call, 1, wait).wall))
    for _ in range(rounds):
        for name, call in calls.items():
            if repeats[name] > 1:
                call()  # its data back into the caches
            times[name].append(_time(call, repeats[name], wait))
    return {
        name: Seconds(*(statistics.median(column) for column in zip(*found, strict=True)))
        for name, found in times.items()
    }


def _time(call: Callable[[], object], repeats: int, wait: Callable[[], None]) -> Seconds:
    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        call()
    wait()
    return Seconds((time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats)


def matrix_peak(dtype: torch.dtype, device: str, n: int = 0) -> float:
    """GFLOP/s of the library's product of two n x n matrices."""
    n = n or (8192 if device == "cuda" else 2048)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    seconds = time_alternately({"": lambda: a @ b}, rounds=5)[""].wall
    return 2e-9 * n**3 / seconds


def copy_rate(device: str) -> float:
    """GB/s read and written by a copy that fits in no cache."""
    a = torch.zeros(1 << 28, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2e-9 * a.numel() / time_alternately({"": lambda: b.copy_(a)}, rounds=5)[""].wall


def machine(device: str) -> str:
    """One line: what the figures below are to be held against."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    peaks = ", ".join(f"{name} {matrix_peak(d, device):.0f}" for name, d in dtypes.items())
    where = (
        torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} thread"
    )
    return (
        f"{where}, torch {torch.__version__}; torch's matrix product, GFLOP/s: {peaks}; "
        f"copy {copy_rate(device):.0f} GB/s"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
