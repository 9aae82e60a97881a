"""Time sf_evaluate against torch: python -m benchmarks.sf_evaluate [cuda].

On one CPU thread B 1024 x K 256, h 256, d 50, and on a GPU B 4096 x K 256, h 1024, d 100, for both
kinds of network. Against it stand the naive evaluation, all psi at once and in chunks of many
sizes, and the naive one compiled, in its best chunk size. A chunk is some states with all latents.
Each timed form is held against the float64 reference, and its memory is what it allocates at its
peak beyond the inputs. Last, the diagonal form as LoLA's bootstrap uses it.
"""

import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measuring import Device, machine, matrix_peak, start, table, time_alternately
from bfmpipe.kernels import (
    Embedding,
    Linear,
    Network,
    build_info,
    sf_evaluate,
    sf_evaluate_reference,
    sf_evaluate_rows,
)

OBS, ACTION, HEADS = 24, 6, 2
SIZES = {"cpu": (1024, 256, 256, 50), "cuda": (4096, 256, 1024, 100)}  # B, K, h, d
CHUNKS = {"cpu": (4, 8, 16, 32, 64), "cuda": (64, 128, 256, 512, 1024)}
HALF = {"cpu": torch.bfloat16, "cuda": torch.float16}
FORMS = ("two embeddings", "concatenated")


def make(form: str, hidden: int, d: int, device: str) -> Network:
    generator = torch.Generator().manual_seed(0)

    def linear(inputs: int, outputs: int) -> Linear:
        draw = torch.randn(HEADS, inputs + 1, outputs, generator=generator)
        draw /= math.sqrt(inputs)
        return Linear(draw[:, :-1].contiguous().to(device), draw[:, -1:].contiguous().to(device))

    def embedding(inputs: int, outputs: int) -> Embedding:
        ones = torch.ones(HEADS, 1, hidden, device=device)
        return Embedding(linear(inputs, hidden), ones, 0 * ones, linear(hidden, outputs))

    if form == "concatenated":
        whole = embedding(OBS + d + ACTION, hidden)
        return Network(whole, None, (), linear(hidden, d))
    half = hidden // 2
    left, right = embedding(OBS + d, half), embedding(OBS + ACTION, half)
    return Network(left, right, (linear(hidden, hidden),), linear(hidden, d))


def draw_inputs(B: int, K: int, d: int, device: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(B, OBS), (B, ACTION), (K, d), (K, d)]
    return [torch.randn(shape, generator=generator).to(device) for shape in shapes]


def in_chunks(evaluate: Callable, chunk: int, network: Network, obs, action, z, w) -> Tensor:
    blocks = zip(obs.split(chunk), action.split(chunk), strict=True)
    return torch.cat([evaluate(network, o, a, z, w) for o, a in blocks])


def in_half(call: Callable[[], Tensor], device: str) -> Tensor:
    with torch.autocast(device, HALF[device]):
        return call().float()


def kept_flop(form: str, B: int, K: int, hidden: int) -> float:
    """Of the products a pair needs after the restructuring."""
    a_pair = hidden**2 if form == "concatenated" else hidden * (hidden // 2) * 2
    return 2.0 * HEADS * B * K * a_pair


def double(x):
    if isinstance(x, tuple):
        parts = [double(part) for part in x]
        return tuple(parts) if type(x) is tuple else type(x)(*parts)
    return x.double() if isinstance(x, Tensor) else x


def error(call: Callable[[], Tensor], network: Network, inputs: list[Tensor]) -> float:
    """Relative, of the first rows, against the float64 reference."""
    obs, action, z, w = inputs
    want = sf_evaluate_reference(double(network), *double((obs[:64], action[:64], z, w)))
    return float((call()[:64].double() - want).norm() / want.norm())


def peak_memory(form: str, call: str, device: str) -> float:
    """MiB that a call allocates, on a CPU measured in a process of its own."""
    if device == "cpu":
        command = [sys.executable, "-m", "benchmarks.sf_evaluate", "--memory", form, call]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    B, K, hidden, d = SIZES[device]
    evaluate = partial(CALLS[call], make(form, hidden, d, device), *draw_inputs(B, K, d, device))
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    try:
        evaluate()
    except torch.cuda.OutOfMemoryError:
        return math.inf
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def print_resident(form: str, call: str) -> None:
    torch.set_num_threads(1)
    B, K, hidden, d = SIZES["cpu"]
    network, inputs = make(form, hidden, d, "cpu"), draw_inputs(B, K, d, "cpu")
    obs, action, *rest = inputs
    CALLS[call](network, obs[:8], action[:8], *rest)  # what is allocated once
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = resident("VmRSS")
    CALLS[call](network, *inputs)
    print(resident("VmHWM") - before)


def resident(name: str) -> float:
    """MiB, now (VmRSS) or at the peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(name))
    return int(line.split()[1]) / 1024


CALLS = {
    "naive, all at once": sf_evaluate_reference,
    "kernel, full": sf_evaluate,
    "kernel, half": partial(sf_evaluate, precision="half"),
}


def main(device: Device = "cpu") -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    print(f"{machine(device)}; {build_info()}\n")
    B, K, hidden, d = SIZES[device]
    rates = {"full": matrix_peak(torch.float32, device)}
    rates["half"] = matrix_peak(HALF[device], device)
    for form in FORMS:
        network, inputs = make(form, hidden, d, device), draw_inputs(B, K, d, device)
        memory = {name: peak_memory(form, name, device) for name in CALLS}
        calls = {
            name: partial(call, network, *inputs)
            for name, call in CALLS.items()
            if math.isfinite(memory[name])
        }
        chunked = {
            f"naive, {n} states at once": partial(
                in_chunks, sf_evaluate_reference, n, network, *inputs
            )
            for n in CHUNKS[device]
        }
        first = time_alternately(chunked, rounds=2)
        best = min(chunked, key=lambda name: first[name].wall)
        calls[best] = chunked[best]
        chunk = CHUNKS[device][list(chunked).index(best)]
        compiled = torch.compile(sf_evaluate_reference)
        calls["naive, compiled, in that chunk"] = partial(
            in_chunks, compiled, chunk, network, *inputs
        )
        calls["naive, compiled, half, in that chunk"] = partial(
            in_half, calls["naive, compiled, in that chunk"], device
        )
        seconds = time_alternately(calls, rounds=5)
        eager = [name for name in seconds if name.startswith("naive") and "compiled" not in name]
        naive = min(seconds[name].wall for name in eager)
        flop = kept_flop(form, B, K, hidden)
        rows = []
        for name, taken in seconds.items():
            kernel = name.startswith("kernel")
            rate = flop * 1e-9 / taken.wall
            share = f"{rate / rates[name.split()[-1]]:.0%}" if kernel else ""
            rows.append(
                (
                    name,
                    *(f"{1e3 * s:.1f}" for s in taken),
                    f"{naive / taken.wall:.1f}",
                    f"{rate:.0f}" if kernel else "",
                    share,
                    f"{error(calls[name], network, inputs):.1e}",
                    f"{memory[name]:.0f}" if name in memory else "",
                )
            )
        print(f"{form}: B {B}, K {K}, h {hidden}, d {d}, {HEADS} heads")
        head = ("", "wall, ms", "CPU, ms", "against the best naive", "GFLOP/s kept")
        print(table((*head, "of torch's matrix rate", "error", "peak, MiB"), rows))
        if device == "cpu":
            print(f"threads, kernel, full: {by_threads(network, inputs)}\n")
    print("the diagonal, as in LoLA's bootstrap: 512 rows, h 128, d 32")
    print(table(("", "kernel, us", "torch, us", "ratio"), [diagonal(f, device) for f in FORMS]))


def by_threads(network: Network, inputs: list[Tensor]) -> str:
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        call = {"": partial(sf_evaluate, network, *inputs)}
        found.append(f"{threads}: {1e3 * time_alternately(call)[''].wall:.1f} ms")
    torch.set_num_threads(1)
    return ", ".join(found)


def diagonal(form: str, device: str) -> tuple[str, ...]:
    network, inputs = make(form, 128, 32, device), draw_inputs(512, 512, 32, device)
    rows = [x[:, None] for x in inputs]  # a group a row
    calls = {
        "kernel": partial(sf_evaluate_rows, network, *inputs),
        "torch": partial(sf_evaluate_reference, network, *rows),
    }
    kernel, plain = (1e6 * s.wall for s in time_alternately(calls).values())
    return form, f"{kernel:.0f}", f"{plain:.0f}", f"{plain / kernel:.1f}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        print_resident(*sys.argv[2:])
    else:
        start(main)
