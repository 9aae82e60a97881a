"""TensorBoard event files of a training: for looking on, and no artifact of the pipeline."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bfmpipe.types import UserError


def check() -> None:
    """Find out before a training whether event files can be written.

    Raises:
        UserError: TensorBoard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "pretrain.tensorboard is true, but the package tensorboard is not installed; "
            "pip install 'bfmpipe[tensorboard]'"
        )


class EventFiles:
    """Scalars of one seed in a directory, which holds those of the latest training only.

    A training that goes on at a checkpoint writes again what that one had, and no point twice.
    """

    def __init__(self, directory: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # its import is slow, and optional

        for old in directory.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = SummaryWriter(directory)
        self._rows = 0
        self._evaluations = 0

    def write(
        self, losses: Sequence[Mapping[str, float]], evaluations: Sequence[Mapping[str, Any]]
    ) -> None:
        """Write what has been added to the lists since the last call.

        Args:
            losses: rows, each of an `update`.
            evaluations: name -> number, likewise.
        """
        for row in losses[self._rows :]:
            self._add("losses", row)
        for row in evaluations[self._evaluations :]:
            self._add("evaluations", row)
        self._rows, self._evaluations = len(losses), len(evaluations)

    def close(self) -> None:
        """Write out everything."""
        self._writer.close()

    def _add(self, group: str, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            if name != "update":
                self._writer.add_scalar(f"{group}/{name}", value, int(row["update"]))
