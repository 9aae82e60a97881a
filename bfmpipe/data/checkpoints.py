"""Files that an unfinished run goes on from: only one that is of that very run.

A checkpoint carries as `identity`, in its header, what must agree. One of another run is kept
beside its place until the run here is finished: it may stand for days of work, and the difference
be an oversight. `Clock` says when the next one is due.
"""

import hashlib
import json
import reprlib
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from bfmpipe import files
from bfmpipe.data.tensors import load_tensors

SECONDS = 300.0
"""Between one checkpoint and the next, at least."""
SHARE = 0.01
"""Of the time, at most, is spent on them: those that take long to write are rarer."""
_KEPT = ".kept"


class Clock:
    """Says when a run that begins, or goes on, is due for its next checkpoint."""

    def __init__(self) -> None:
        self._due = time.monotonic() + SECONDS

    @property
    def due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self._due

    @contextmanager
    def writing(self) -> Iterator[None]:
        """For what is done to write a checkpoint; the next is due `SECONDS` later, or more."""
        began = time.monotonic()
        yield
        ended = time.monotonic()
        self._due = ended + max(SECONDS, (ended - began) / SHARE)


def resume(
    path: Path, identity: Mapping[str, Any], run: str
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and header of this run's checkpoint, where there is one.

    One of another run is renamed, for that one to find it again, with a warning.

    Args:
        path: of the checkpoint.
        identity: JSON-able; settings, code, seeds and the like.
        run: what such a run is called in the warning.

    Raises:
        UserError: for a damaged file.
    """
    new = json.loads(json.dumps(identity))
    found = load_tensors(path) if path.exists() else None
    if found and (old := found[1].get("identity")) != new:
        found = None
        aside = _aside(path, old)
        path.replace(aside)
        first, *more = [*_differences(old, new)] or ["its identity"]
        others = f" and {len(more)} more" if more else ""
        print(
            f"warning: {path}: a checkpoint of another {run}: {first}{others}; it is kept as "
            f"{aside.name} until the {run} here is finished",
            file=sys.stderr,
        )
    own = _aside(path, new)
    if own.exists() and not path.exists():
        own.replace(path)
        found = load_tensors(path)
    return found


def set_aside(path: Path) -> list[Path]:
    """Checkpoints of other runs that `resume` found at this path, and renamed."""
    return sorted(path.parent.glob(f"{path.stem}.of-*{path.suffix}"))


def kept(path: Path, identity: Mapping[str, Any]) -> Path:
    """A directory for what the checkpoints of a run share, which `remove` removes too."""
    return _aside(path, json.loads(json.dumps(identity)), _KEPT)


def remove(path: Path) -> None:
    """Leave no checkpoint behind, be it another run's."""
    for file in (path, *set_aside(path)):
        files.remove(file)
    for directory in path.parent.glob(f"{path.stem}.of-*{_KEPT}"):
        shutil.rmtree(directory, ignore_errors=True)


def _aside(path: Path, identity: Any, suffix: str = "") -> Path:
    """Where a checkpoint of a run waits for it: one place each."""
    text = json.dumps(identity, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return path.with_suffix(f".of-{digest}{suffix or path.suffix}")


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """Where JSON differs from what it was, entry by entry: `threads was 4 and is 2`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
    elif old != new:
        yield f"{name or 'its identity'} was {reprlib.repr(old)} and is {reprlib.repr(new)}"
