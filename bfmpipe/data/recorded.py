"""A data set that is there already, in the pipeline's own format: `bfmpipe roam` writes such."""

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from bfmpipe.config import Config as BaseConfig
from bfmpipe.data import transitions
from bfmpipe.data.transitions import DomainLike
from bfmpipe.files import file_digest
from bfmpipe.types import Array, UserError


class Config(BaseConfig):
    """Which data set."""

    path: str = Field(min_length=1)
    """Of a Parquet file as the stage `collect` writes it; `{domain}` in it stands for the domain's
    name."""
    max_episodes: int | None = Field(None, ge=1)
    """Take so many episodes, the first; all by default."""


class Explorer:
    """The episodes of a file: it has `episodes` where other explorers have `act`.

    Args:
        config: which.
        domain: what they must be of.

    Raises:
        UserError: for a file that is damaged or no data set, or one of another domain.
    """

    report = ""

    def __init__(self, config: Config, domain: DomainLike) -> None:
        self.config, self.domain = config, domain
        self.path = _path(config.path, domain.name)
        self.data = transitions.read(self.path)
        try:
            transitions.check_domain(self.data, domain, "the experiment")
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from error
        ends = np.flatnonzero(np.diff(self.data.episode)) + 1
        bounds = [0, *ends.tolist(), len(self.data.episode)]
        self._episodes = list(itertools.pairwise(bounds))[: config.max_episodes]
        self.total = len(self._episodes)

    @property
    def source(self) -> dict[str, Any]:
        """For the data set's provenance."""
        return {
            "format": "recorded",
            "fingerprint": fingerprint(self.config.path, self.domain.name),
            "episodes": self.total,
            "sha256": file_digest(self.path),
        }

    def episodes(self) -> Iterator[dict[str, Array]]:
        """Columns of one episode after the other."""
        for number, (first, end) in enumerate(self._episodes):
            columns = {name: getattr(self.data, name)[first:end] for name in ("obs", "action")}
            yield {
                "episode": np.full(end - first, number, np.int32),
                "step": self.data.step[first:end],
                "physics": self.data.physics[first:end],
                **columns,
            }


def fingerprint(path: str, domain: str) -> str | None:
    """A digest of the file's name, size and when it was last changed; None where there is none."""
    file = _path(path, domain)
    if not file.is_file():
        return None
    found = file.stat()
    named = f"{file} {found.st_size} {found.st_mtime_ns}"
    return hashlib.sha256(named.encode()).hexdigest()[:16]


def _path(path: str, domain: str) -> Path:
    return Path(path.replace("{domain}", domain)).expanduser()
