"""The checkpoint of an adaptation: killed, it goes on from there and ends in the same bytes."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bfmpipe.adaptation.base import Method
from bfmpipe.adaptation.protocol import Evaluated
from bfmpipe.adaptation.state import NoStateError, State
from bfmpipe.data import checkpoints
from bfmpipe.data.opening import MADE_AGAIN, UnreadableError
from bfmpipe.data.tensors import save_tensors
from bfmpipe.types import UserError

_EVALUATED = ("returns", "z", "cosine")
_METHOD = "method/"


class Checkpoint:
    """Where one adaptation stands, in a file.

    Args:
        path: of the file; it need not be there.
        identity: JSON-able, what an adaptation must agree with to go on: settings, code, models,
            seeds and so on.
        spent: what the adaptation has cost so far, by any names.
    """

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, Any],
        spent: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self.path = path
        self.identity = identity
        self.env_steps = 0
        """Of the checkpoint that it went on from, a task."""
        self.spent: Mapping[str, float] = {}
        """What had been spent when that was written."""
        self._spent = spent
        self._fresh: State | None = None
        self._clock: checkpoints.Clock | None = None

    def resume(self, method: Method) -> list[Evaluated]:
        """Put a method that has not advanced where its adaptation stood.

        Returns:
            The evaluations until then, but for the first, without paths; none where there is no
            checkpoint, or none of this adaptation, or none that can be used: a warning says so.
        """
        try:
            self._fresh = State.of(method)
        except NoStateError as error:
            self._warn_of(method, error)
            return []
        self._clock = checkpoints.Clock()
        try:
            found = checkpoints.resume(self.path, self.identity, "adaptation")
            if found is None:
                return []
            tensors, header = found
            state = State(header["tree"], _under(tensors, _METHOD), header["places"])
            state.load(method)
        except UnreadableError:
            raise
        except UserError as error:
            said = str(error).partition(f"; {MADE_AGAIN}")[0]
            print(f"warning: {said}; the adaptation begins anew", file=sys.stderr)
            return []
        self.env_steps, self.spent = method.env_steps, header["spent"]
        columns = (tensors[name].numpy() for name in _EVALUATED)
        return [
            Evaluated(steps, returns, np.empty((0, len(z), 0, 0)), z, cosine)
            for steps, returns, z, cosine in zip(header["env_steps"], *columns, strict=True)
        ]

    def save(self, method: Method, evaluations: Sequence[Evaluated]) -> None:
        """Write the checkpoint, if it is time.

        Args:
            method: as it stands, after it has advanced.
            evaluations: until now, but for the first, which is played again.
        """
        if self._clock is None or not self._clock.due:
            return
        with self._clock.writing():
            self._write(method, evaluations)

    def _write(self, method: Method, evaluations: Sequence[Evaluated]) -> None:
        assert self._fresh is not None
        try:
            state = State.of(method)
            state.check(self._fresh)
        except NoStateError as error:
            self._warn_of(method, error)
            return
        tensors = {f"{_METHOD}{name}": tensor for name, tensor in state.tensors.items()}
        for name in _EVALUATED:
            rows = [torch.from_numpy(getattr(one, name)) for one in evaluations]
            tensors[name] = torch.stack(rows) if rows else torch.empty(0)
        header = {
            "kind": "adaptation",
            "identity": self.identity,
            "tree": state.tree,
            "places": state.places,
            "env_steps": [one.env_steps for one in evaluations],
            "spent": dict(self._spent()),
        }
        save_tensors(self.path, tensors, header)

    def remove(self) -> None:
        """Leave nothing behind: the adaptation is finished."""
        checkpoints.remove(self.path)

    def _warn_of(self, method: Method, error: NoStateError) -> None:
        self._clock = None
        print(
            f"warning: {method.method_name()}: {error}, which no checkpoint can hold; killed, this "
            "adaptation begins anew",
            file=sys.stderr,
        )


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
