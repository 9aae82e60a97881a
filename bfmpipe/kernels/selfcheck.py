"""What was built, and whether it computes here what the references do: `bfmpipe doctor`."""

import platform
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bfmpipe.kernels import _cpu
from bfmpipe.kernels.extension import check_build, cuda_problem
from bfmpipe.kernels.leave_one_out import leave_one_out, leave_one_out_reference
from bfmpipe.kernels.sf_evaluate import (
    Embedding,
    Linear,
    Network,
    Precision,
    sf_evaluate,
    sf_evaluate_reference,
)
from bfmpipe.types import UserError


class Check(NamedTuple):
    """The largest relative error (Frobenius norm) of what a kernel gives, and what is allowed."""

    name: str
    error: float
    tolerance: float
    problem: str | None = None
    """Why there is no error to measure."""

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance, which NaN is not."""
        return self.problem is None and self.error <= self.tolerance


def facts() -> dict[str, str]:
    """Say what was built, and what of it can be used here.

    UserError where it was built from other sources than those beside it: then what Python hands
    over may not be what the kernels expect.
    """
    compared = "the build is current" if check_build() else "there is no csrc/ to compare with"
    return {
        "python": f"{platform.python_version()} on {platform.machine()}",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'not built in'}",
        "cpu kernels": f"built for {' '.join(_cpu.compiled_instruction_sets)} by {_cpu.compiler}"
        + (", with sanitizers" if _cpu.sanitized else ""),
        "processor": f"has {' '.join(_cpu.instruction_sets())}; {_cpu.instruction_set()} is in use",
        "cuda kernels": _cpu.cuda_build,
        "gpu": gpu_problem() or torch.cuda.get_device_name(),
        "sources": f"csrc {_cpu.source_digest()[:16]}; {compared}",
    }


def gpu_problem() -> str | None:
    """Say in one sentence why no GPU can be used; None where one can."""
    if problem := cuda_problem():
        return problem
    return None if torch.cuda.is_available() else f"torch {torch.__version__} cannot use a GPU."


def checks() -> Iterator[Check]:
    """Hold every kernel against its reference in float64, on all that can be used here."""
    in_use = _cpu.instruction_set()
    try:
        for name in _cpu.instruction_sets():
            _cpu.use_instruction_set(name)
            yield from _checks_on(name, "cpu")
    finally:
        _cpu.use_instruction_set(in_use)
    if gpu_problem() is None:
        yield from _checks_on("gpu", "cuda")


_FLOATS = {"float32": torch.float32, "float64": torch.float64}
_TOLERANCE = {"float32": 1e-6, "float64": 1e-13, "half": 5e-3}


def _checks_on(place: str, device: str) -> Iterator[Check]:
    def check(name: str, precision: str, error: Callable[..., float], *arguments: Any) -> Check:
        name, tolerance = f"{place}: {name}, {precision}", _TOLERANCE[precision]
        dtype = _FLOATS.get(precision, torch.float32)
        try:
            return Check(name, error(*arguments, dtype, device), tolerance)
        except (UserError, RuntimeError, MemoryError) as problem:  # such as a GPU of another kind
            said = (str(problem) or repr(problem)).splitlines()[0]
            return Check(name, float("nan"), tolerance, said)

    for name, ends in (("leave_one_out", False), ("leave_one_out with terminations", True)):
        for precision in _FLOATS:
            yield check(name, precision, _error_of_leave_one_out, ends)
    for form, network in (
        ("two embeddings", _two_embeddings()),
        ("one embedding", _one_embedding()),
    ):
        name = f"sf_evaluate of {form}"
        for precision in _FLOATS:
            yield check(name, precision, _error_of_values, network, "full")
        yield check(name, "half", _error_of_values, network, "half")
        for precision in _FLOATS:
            yield check(f"{name}, gradient", precision, _error_of_gradient, network)


# Everything is drawn in float32, which float64 holds exactly: a kernel and its reference start from
# the same numbers. Widths and counts are no multiples of what the kernels cut them into.


def _error_of_leave_one_out(ends: bool, dtype: torch.dtype, device: str) -> float:
    nstep, tasks, states, k, d = 20, 2, 3, 37, 9
    draw = _draws()
    tensors = (
        draw(nstep, tasks, states, k),
        draw(tasks, states, k),
        draw(tasks, states, k, d),
        draw(tasks, d),
    )
    terminated = draw(nstep, tasks, states, k) > 1.5 if ends else None
    got = leave_one_out(
        *_cast(tensors, dtype, device),
        sigma=0.3,
        discount=0.97,
        terminated=None if terminated is None else terminated.to(device),
    )
    want = leave_one_out_reference(*_cast(tensors), sigma=0.3, discount=0.97, terminated=terminated)
    return _largest_error(got, want)


def _error_of_values(
    network: Network, precision: Precision, dtype: torch.dtype, device: str
) -> float:
    inputs, _ = _inputs()
    got = sf_evaluate(*_cast((network, *inputs), dtype, device), pessimism=0.5, precision=precision)
    want = sf_evaluate_reference(*_cast((network, *inputs)), pessimism=0.5)
    return _largest_error([got], [want])


def _error_of_gradient(network: Network, dtype: torch.dtype, device: str) -> float:
    inputs, grad_q = _inputs()

    def gradient(evaluate: Callable[..., Tensor], dtype: torch.dtype, device: str) -> Any:
        leaves = [x.requires_grad_() for x in _cast(inputs, dtype, device)]
        q = evaluate(_cast(network, dtype, device), *leaves, pessimism=0.5)
        return torch.autograd.grad(q, leaves, _cast(grad_q, dtype, device))

    want = gradient(sf_evaluate_reference, torch.float64, "cpu")
    return _largest_error(gradient(sf_evaluate, dtype, device), want)


_OBS, _ACTION, _Z, _HIDDEN = 5, 3, 7, 40


def _inputs() -> tuple[tuple[Tensor, ...], Tensor]:
    """Observations, actions, z and w; and a gradient of their values."""
    draw, groups, B, K = _draws(), 2, 13, 11
    inputs = draw(groups, B, _OBS), draw(groups, B, _ACTION), draw(groups, K, _Z)
    return (*inputs, draw(groups, K, _Z)), draw(groups, B, K)


def _two_embeddings() -> Network:
    draw = _draws()
    left = _embedding(draw, _OBS + _Z, _HIDDEN // 2)
    right = _embedding(draw, _OBS + _ACTION, _HIDDEN // 2)
    trunk = _linear(draw, _HIDDEN, _HIDDEN), _linear(draw, _HIDDEN, _HIDDEN)
    return Network(left, right, trunk, _linear(draw, _HIDDEN, _Z))


def _one_embedding() -> Network:
    draw = _draws()
    left = _embedding(draw, _OBS + _Z + _ACTION, _HIDDEN)
    return Network(left, None, (), _linear(draw, _HIDDEN, _Z))


def _embedding(draw: Callable[..., Tensor], inputs: int, outputs: int) -> Embedding:
    first = _linear(draw, inputs, _HIDDEN)
    scale, shift = 1 + 0.1 * draw(2, 1, _HIDDEN), 0.1 * draw(2, 1, _HIDDEN)
    return Embedding(first, scale, shift, _linear(draw, _HIDDEN, outputs))


def _linear(draw: Callable[..., Tensor], inputs: int, outputs: int) -> Linear:
    return Linear(draw(2, inputs, outputs) / inputs**0.5, 0.1 * draw(2, 1, outputs))


def _draws() -> Callable[..., Tensor]:
    """A function that draws normal tensors, the same ones whenever it is made."""
    generator = torch.Generator().manual_seed(0)
    return lambda *size: torch.randn(size, generator=generator)


def _cast(x: Any, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Any:
    """The same tuples, of tensors of another type or elsewhere."""
    if isinstance(x, Tensor):
        return x.to(device, dtype, copy=True)
    if isinstance(x, tuple):
        parts = [_cast(part, dtype, device) for part in x]
        return tuple(parts) if type(x) is tuple else type(x)(*parts)
    return x


def _largest_error(got: Iterable[Tensor], want: Iterable[Tensor]) -> float:
    errors = [
        (x.detach().cpu().double() - y.detach()).norm() / y.detach().norm()
        for x, y in zip(got, want, strict=True)
    ]
    return float(torch.stack(errors).max())  # NaN if one is
