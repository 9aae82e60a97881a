"""What the benchmarks share: fair timing, and the peaks of the machine that they run on."""

import inspect
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch

from bfmpipe.types import UserError, meant

Device = Literal["cpu", "cuda"]


def start(main: Callable[..., object]) -> None:
    """Run a benchmark with the command line's arguments; bad input ends it with one sentence.

    The arguments are those of `main`, by its annotations; --help prints the module's docstring.
    """
    words = sys.argv[1:]
    if {"-h", "--help"} & {*words}:
        print(inspect.getdoc(sys.modules[main.__module__]))
        sys.exit()
    try:
        sys.exit(main(*_arguments(main, words)) or 0)
    except UserError as error:
        sys.exit(f"error: {error}")


def _arguments(main: Callable[..., object], words: Sequence[str]) -> list[Any]:
    signature = inspect.signature(main, eval_str=True)
    parameters = list(signature.parameters.values())
    try:
        signature.bind(*words)
    except TypeError:
        spec = sys.modules[main.__module__].__spec__
        usage = " ".join(["python -m", spec.name if spec else "", *map(_shown, parameters)])
        raise UserError(f"{len(words)} arguments given; usage: {usage}") from None
    return [_value(word, parameters[min(i, len(parameters) - 1)]) for i, word in enumerate(words)]


def _shown(parameter: inspect.Parameter) -> str:
    name = "|".join(get_args(parameter.annotation)) or parameter.name.upper()
    if parameter.kind is parameter.VAR_POSITIONAL:
        return f"[{name} ...]"
    return name if parameter.default is parameter.empty else f"[{name}]"


def _value(word: str, parameter: inspect.Parameter) -> Any:
    kind, name = parameter.annotation, parameter.name.upper()
    if choices := get_args(kind):
        if word not in choices:
            valid = f"{', '.join(choices)}{meant(word, choices)}"
            raise UserError(f"{name} is '{word}'; valid: {valid}")
        if word == "cuda" and not torch.cuda.is_available():
            raise UserError("torch finds no usable GPU on this machine; leave cuda out")
        return word
    try:
        return kind(word)
    except ValueError:
        number = "a whole number" if kind is int else "a number"
        raise UserError(f"{name} is '{word}'; valid: {number}") from None


def tables(results: str) -> Path:
    """The directory of a finished run's tables."""
    directory = Path(results) / "tables"
    if not directory.is_dir():
        raise UserError(
            f"{directory}: no such directory; run the experiment first (`make`, or snakemake), or "
            "name the directory of a finished run"
        )
    return directory


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
