"""Import of ExORL's episodes (Yarats et al. 2022): exploration that others have published.

A set is a directory, or a zip of one that is never unpacked, with a compressed npz file an episode
of T steps:

    observation (T + 1, obs_dim) float32        reward    (T + 1, 1) or (T + 1, 4)
    action      (T + 1, action_dim) float32     discount  (T + 1, 1) float32
    physics     (T + 1, physics_dim) float64

There action[t] led from observation[t - 1] to observation[t], and row 0 holds a dummy action. In a
data set of ours a row holds the action taken there, so actions move up by one row and the dummy
becomes the last. Rewards are not used: any task's are recomputed from `physics`.
"""

import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from bfmpipe.config import Config as BaseConfig
from bfmpipe.data.transitions import DomainLike
from bfmpipe.types import Array, UserError

_PHYSICS_STEPS = {"cheetah": 1, "point_mass_maze": 1, "quadruped": 4, "walker": 10}
"""Of the control steps that the published data were recorded at."""
_KEYS = ("observation", "action", "reward", "discount", "physics")
_REWARD_WIDTHS = (1, 4)
_LARGEST = 2**28
"""Bytes of one file or array; published ones have less than one million."""
_SHOWN = 5


class Config(BaseConfig):
    """Which episodes."""

    path: str = Field(min_length=1)
    """A directory or zip of npz files; `{domain}` in it stands for the domain's name."""
    max_episodes: int | None = Field(None, ge=1)
    """Take this many, the first by name; all by default."""
    on_error: Literal["stop", "skip"] = "stop"
    """What to do with a file that is no such episode: stop, or leave it out and say so."""


class EpisodeError(Exception):
    """Why a file is no episode, to be said after its name."""


class Explorer:
    """Episodes that others explored: it has `episodes` where other explorers have `act`.

    Args:
        config: which.
        domain: what they must fit.

    Raises:
        UserError: where there are no episodes, or the domain runs at another clock than theirs.
    """

    def __init__(self, config: Config, domain: DomainLike) -> None:
        self.config = config
        self.domain = domain
        self.path = _path(config.path, domain.name)
        expected = _PHYSICS_STEPS.get(domain.name)
        if expected and domain.config.physics_steps != expected:
            raise UserError(
                f"{self.path}: ExORL recorded {domain.name} at {expected} physics steps a control "
                f"step, and the domain has {domain.config.physics_steps}; set its physics_steps to "
                f"{expected}"
            )
        self.skipped = 0
        self._reasons: list[dict[str, str]] = []
        self._taken, self._bytes, self._digest = 0, 0, hashlib.sha256()
        self._fingerprint = fingerprint(config.path, domain.name)
        self._files = _Zip(self.path) if self.path.is_file() else _Directory(self.path)
        found = len(self._files.names)
        self.total = min(found, config.max_episodes or found)
        """Episodes that will be taken, if none is left out."""

    @property
    def source(self) -> dict[str, Any]:
        """What was taken so far: for the data set's provenance.

        The digest is of the files' names and contents, the same for a zip and its directory.
        """
        return {
            "format": "exorl",
            "fingerprint": self._fingerprint,
            "episodes": self._taken,
            "bytes": self._bytes,
            "sha256": self._digest.hexdigest(),
            "skipped": self.skipped,
            "skipped_first": self._reasons,
        }

    @property
    def report(self) -> str:
        """One sentence on the files that were left out; empty if there were none."""
        if not self.skipped:
            return ""
        shown = "; ".join(f"{item['file']}: {item['reason']}" for item in self._reasons)
        more = self.skipped - len(self._reasons)
        tail = f"; and {more} more" if more else ""
        return f"{self.path}: {self.skipped} files left out ({shown}{tail})"

    def episodes(self) -> Iterator[dict[str, Array]]:
        """Columns of one episode after the other, in the order of the files' names.

        Raises:
            UserError: for a file that is no episode, unless these are skipped; for none at all.
        """
        rows: int | None = None
        with self._files as files:
            for name, reason in files.refused:
                self._refuse(name, reason)
            for name in files.names:
                if self._taken == self.config.max_episodes:
                    break
                try:
                    content = files.read(name)
                    columns = parse_episode(content, self.domain, rows)
                except EpisodeError as error:
                    self._refuse(name, str(error))
                    continue
                rows = len(columns["obs"])
                self._bytes += len(content)
                self._digest.update(f"{Path(name).name} {len(content)}\n".encode())
                self._digest.update(content)
                columns["episode"] = np.full(rows, self._taken, np.int32)
                columns["step"] = np.arange(rows, dtype=np.int32)
                self._taken += 1
                yield columns
        if not self._taken:
            raise UserError(f"{self.report or self.path}: no episode of {self.domain.name} is left")

    def _refuse(self, name: str, reason: str) -> None:
        if self.config.on_error == "stop":
            raise UserError(
                f"{self.path}: {name}: {reason}; 'on_error: skip' leaves such files out"
            )
        self.skipped += 1
        if len(self._reasons) < _SHOWN:
            self._reasons.append({"file": name, "reason": reason})


def parse_episode(content: bytes, domain: DomainLike, rows: int | None) -> dict[str, Array]:
    """Columns obs, action and physics of the bytes of an npz file.

    Args:
        content: the file.
        domain: what it must fit.
        rows: T + 1 of the episodes before; None for the first.

    Raises:
        EpisodeError: where it is no episode of the domain.
    """
    found = _load(content)
    widths = {
        "observation": (domain.obs_dim,),
        "action": (domain.action_dim,),
        "reward": _REWARD_WIDTHS,
        "discount": (1,),
        "physics": (domain.physics_dim,),
    }
    dtypes = {"observation": "float32", "action": "float32", "discount": "float32"}
    dtypes["physics"] = "float64"
    first = len(found["observation"]) if found["observation"].ndim else 0
    for name, wanted in widths.items():
        values = found[name]
        if values.ndim != 2 or values.shape[1] not in wanted:
            shape = " or ".join(f"(T + 1, {width})" for width in wanted)
            raise EpisodeError(
                f"{name} has the shape {values.shape}; an episode of {domain.name} has {shape}"
            )
        if name in dtypes and values.dtype != dtypes[name]:
            raise EpisodeError(f"{name} is {values.dtype}; an ExORL episode has {dtypes[name]}")
        if len(values) != first:
            raise EpisodeError(
                f"{name} has {len(values)} rows and observation {first}; all have T + 1"
            )
        if name in dtypes and not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values).all(axis=1)))
            raise EpisodeError(f"{name} has a number that is not finite in row {row}")
    if first < 2:
        raise EpisodeError(f"it has {first} rows; an episode of T steps has T + 1, T at least 1")
    if rows is not None and first != rows:
        raise EpisodeError(f"it has {first} rows; the episodes before have {rows}")
    action = found["action"]
    if np.abs(action).max() > 1:
        raise EpisodeError("an action is outside [-1, 1]")
    if action[0].any():
        raise EpisodeError("the action in row 0 is not zero; ExORL's first row is a dummy")
    if (found["discount"] != 1).any():
        raise EpisodeError("a discount is not 1; episodes end at the step limit and never earlier")
    return {
        "obs": found["observation"],
        "action": np.roll(action, -1, axis=0),
        "physics": found["physics"],
    }


def fingerprint(path: str, domain: str) -> str | None:
    """A digest of the names and sizes of a set's episodes: enough to see that it was exchanged.

    The same for a zip and its directory; None where there is no set.
    """
    place = _path(path, domain)
    try:
        if place.is_file():
            with zipfile.ZipFile(place) as file:
                found = [(Path(i.filename).name, i.file_size) for i in file.infolist()]
        else:
            found = [(file.name, file.stat().st_size) for file in place.rglob("*.npz")]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None
    episodes = sorted(one for one in found if one[0].endswith(".npz"))
    return hashlib.sha256(repr(episodes).encode()).hexdigest()[:16] if episodes else None


def _path(path: str, domain: str) -> Path:
    return Path(path.replace("{domain}", domain)).expanduser()


def _load(content: bytes) -> dict[str, Array]:
    try:
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise EpisodeError("a single array, not an npz file of an episode's arrays")
        with loaded as npz:
            missing = [name for name in _KEYS if name not in npz.files]
            if missing:
                held = ", ".join(npz.files) or "nothing"
                raise EpisodeError(f"no array '{missing[0]}'; it holds {held}")
            for info in npz.zip.infolist():
                if info.file_size > _LARGEST:
                    raise EpisodeError(f"{info.filename} has {info.file_size:,} bytes, too many")
            return {name: npz[name] for name in _KEYS}
    except EpisodeError:
        raise
    except (
        Exception
    ) as error:  # what numpy, zipfile and zlib raise on foreign bytes is no closed set
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise EpisodeError(f"damaged, truncated or no npz file ({reason})") from error


class _Directory:
    """The npz files under a directory, sorted."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise UserError(
                f"{path}: no such directory or zip; `bfmpipe download` fetches a set of ExORL's"
            )
        self.path = path
        self.refused: list[tuple[str, str]] = []
        found = (file.relative_to(path) for file in path.rglob("*.npz"))
        self.names = [file.as_posix() for file in sorted(found) if not file.name.startswith(".")]
        _check_any(path, self.names)

    def __enter__(self) -> "_Directory":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, name: str) -> bytes:
        file = self.path / name
        try:
            if file.stat().st_size > _LARGEST:
                raise EpisodeError(f"it has {file.stat().st_size:,} bytes, too many for an episode")
            return file.read_bytes()
        except OSError as error:
            raise EpisodeError(f"cannot be read ({error.strerror})") from error


class _Zip:
    """The npz members of a zip, sorted; read one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.refused: list[tuple[str, str]] = []
        self._members: dict[str, zipfile.ZipInfo] = {}
        with _open_zip(path) as file:
            for info in file.infolist():
                name = info.filename
                parts = re.split(r"[/\\]", name)
                if name.startswith(("/", "\\")) or ".." in parts or re.match(r"[A-Za-z]:", name):
                    self.refused.append((name, "a path that leads outside the zip"))
                elif name in self._members:
                    self.refused.append((name, "it is in the zip twice; the first one counts"))
                elif name.endswith(".npz") and not parts[-1].startswith("."):
                    self._members[name] = info
        self.names = sorted(self._members, key=lambda name: name.split("/"))
        if not self.refused:
            _check_any(path, self.names)
        self._stack = ExitStack()

    def __enter__(self) -> "_Zip":
        self._file = self._stack.enter_context(_open_zip(self.path))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, name: str) -> bytes:
        info = self._members[name]
        if info.file_size > _LARGEST:
            raise EpisodeError(f"it has {info.file_size:,} bytes, too many for an episode")
        try:
            return self._file.read(info)
        except Exception as error:  # as in _load
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise EpisodeError(f"damaged in the zip ({reason})") from error


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"{path}: damaged, truncated or no zip ({error}); it must be a zip or a directory of "
            "npz files"
        ) from error


def _check_any(path: Path, names: list[str]) -> None:
    if not names:
        raise UserError(f"{path}: no npz file in it; a set of ExORL's has one an episode")
