"""Updates as CUDA graphs: recorded once, then replayed by one launch each.

An update of a small network is hundreds of kernels of a few microseconds. Launched one by one they
wait for the processor; a graph's follow each other.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bfmpipe.agents.base import Batch
from bfmpipe.types import UserError

Update = Callable[[Sequence[str], Sequence[Batch]], dict[str, Tensor]]
_WARM_UP = 3  # compilation, autotuning, the optimisers' state: none of it can be recorded


class _Recorded(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    names: list[str]
    metrics: Tensor


class Graphs:
    """Calls of an update, one graph for each set of phases that it can have.

    The first calls run as they are, and only then is a graph recorded. What is recorded reads and
    writes the tensors it read and wrote then: where others take their place, `forget`.

    Args:
        update: of phases and batches; its metrics have one shape and type.
        generators: which it draws from, on one GPU.

    Raises:
        UserError: where an update cannot be recorded, as it waits for the device.
    """

    def __init__(self, update: Update, generators: Sequence[torch.Generator]) -> None:
        self._update = update
        self._generators = generators
        self._device = generators[0].device
        self._calls: Counter[tuple[str, ...]] = Counter()
        self._recorded: dict[tuple[str, ...], _Recorded] = {}

    def __call__(self, names: Sequence[str], batches: Sequence[Batch]) -> dict[str, Tensor]:
        """An update's metrics: the caller's to keep."""
        key = tuple(names)
        with torch.cuda.device(self._device):
            if self._calls[key] < _WARM_UP:
                self._calls[key] += 1
                return self._run_beside(key, batches)
            if key not in self._recorded:
                self._recorded[key] = self._record(key, batches)
            graph, inputs, metric_names, metrics = self._recorded[key]
            torch._foreach_copy_(inputs, [x for batch in batches for x in batch])
            graph.replay()
            return dict(zip(metric_names, metrics.clone().unbind(), strict=True))

    def forget(self) -> None:
        """Record anew at the next calls."""
        self._recorded.clear()
        self._calls.clear()

    def _run_beside(self, names: Sequence[str], batches: Sequence[Batch]) -> dict[str, Tensor]:
        """On another stream, as what is recorded will be."""
        here, beside = torch.cuda.current_stream(), torch.cuda.Stream()
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            metrics = self._update(names, batches)
        here.wait_stream(beside)
        return metrics

    def _record(self, names: Sequence[str], batches: Sequence[Batch]) -> _Recorded:
        static = [type(batch)(*(x.clone() for x in batch)) for batch in batches]
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(graph):
                metrics = self._update(names, static)
                packed = torch.stack([*metrics.values()])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            cause = error.__context__ or error  # the end of the recording fails too, and says less
            raise UserError(
                f"an update of {', '.join(names)} cannot be recorded as a CUDA graph "
                f"({str(cause).splitlines()[0]}); set cuda_graphs to false, or leave out of the "
                "agent's losses and draws what waits for the device"
            ) from error
        return _Recorded(graph, [x for batch in static for x in batch], [*metrics], packed)
