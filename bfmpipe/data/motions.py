"""Import of motions: states that follow each other, of whatever moved the body.

A file is one of three kinds:

    .npz         one motion of T frames: qpos (T, nq) and qvel (T, nv), in MuJoCo's order, and act
                 (T, na) where actuators have a state of their own; other arrays are left alone
    .h5, .hdf5   the same arrays at the top, or in groups, a motion each (HumEnv's ep_0, ep_1, ...)
    .parquet     the pipeline's own adapt/METHOD.trajectories.parquet: an episode is a motion

Observations are computed from the states; nobody's actions are kept, so all are zero.
"""

import glob
import hashlib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import Field

from bfmpipe.config import Config as BaseConfig
from bfmpipe.data.tables import read_table
from bfmpipe.data.transitions import OF_EPISODES, DomainLike
from bfmpipe.types import Array, UserError

_PARTS = {"qpos": "nq", "qvel": "nv", "act": "na"}
"""Arrays of a motion, and what MuJoCo's model calls their widths."""
_HDF5 = (".h5", ".hdf5")
_UNREADABLE = (  # TypeError: a single array
    OSError,
    ValueError,
    TypeError,
    EOFError,
    zipfile.BadZipFile,
    NotImplementedError,
)
_END = 2**16  # bytes


class Config(BaseConfig):
    """Which motions."""

    path: str = Field(min_length=1)
    """Of the files, with the shell's wildcards; `{domain}` in it stands for the domain's name."""
    tasks: tuple[str, ...] | None = Field(None, min_length=1)
    """Of trajectories: the tasks whose episodes to take; all by default."""
    phase: Literal["before", "after"] = "after"
    """Of trajectories: those of the latent from zero-shot inference, or of the adapted one."""
    max_episodes: int | None = Field(None, ge=1)
    """Take so many motions, the first by file; all by default."""


class Body(DomainLike, Protocol):
    """What moves; bfmpipe.envs.domain.Domain is one."""

    model: Any
    observed_fields: tuple[str, ...]

    def split(self, physics: Array) -> dict[str, Array]:
        """Fields of physics states."""

    def observe(self, fields: Mapping[str, Array]) -> Array:
        """Observations of fields."""


class Explorer:
    """Motions as episodes: it has `episodes` where other explorers have `act`.

    Args:
        config: which.
        domain: whose body moves.

    Raises:
        UserError: where no file is found, or a state does not say what is observed in it.
    """

    report = ""
    has_actions: ClassVar[bool] = False
    """So only agents that ask for none can learn from them."""

    def __init__(self, config: Config, domain: Body) -> None:
        self.config, self.domain = config, domain
        if domain.observed_fields:
            raise UserError(
                f"{domain.name}: a motion is made of states, and what is observed here "
                f"({', '.join(domain.observed_fields)}) cannot be told from a state"
            )
        self.files = _files(config.path, domain.name)
        if not self.files:
            raise UserError(
                f"{config.path.replace('{domain}', domain.name)}: no such files; motions are npz "
                "or HDF5 files with qpos and qvel, or tables of trajectories"
            )
        hdf5 = [file for file in self.files if file.suffix in _HDF5]
        if hdf5 and not _has_h5py():
            raise UserError(
                f"{hdf5[0]}: an HDF5 file, but the package h5py is not installed; "
                "pip install 'bfmpipe[hdf5]'"
            )
        self.total: int | None = None
        """Motions that will be taken: not known before."""
        self._taken, self._digest = 0, hashlib.sha256()

    @property
    def source(self) -> dict[str, Any]:
        """What was taken so far: for the data set's provenance. The digest is of the states."""
        return {
            "format": "motions",
            "fingerprint": fingerprint(self.config.path, self.domain.name),
            "episodes": self._taken,
            "sha256": self._digest.hexdigest(),
        }

    def episodes(self) -> Iterator[dict[str, Array]]:
        """Columns of one motion after the other, in the order of the files' names.

        Raises:
            UserError: for a file that holds no motion of this domain's body.
        """
        for path in self.files:
            kinds = {".npz": self._npz, ".parquet": self._trajectories}
            for where, physics in kinds.get(path.suffix, self._hdf5)(path):
                if self._taken == self.config.max_episodes:
                    return
                yield self._columns(where, physics)
        if not self._taken:
            raise UserError(f"{self.config.path}: no motion of these tasks in these files")

    def _columns(self, where: str, physics: Array) -> dict[str, Array]:
        rows = len(physics)
        finite = np.isfinite(physics).all(axis=1)
        if not finite.all():
            raise UserError(f"{where}: frame {np.argmin(finite)} has a number that is not finite")
        if rows < 2:
            raise UserError(f"{where}: a motion of {rows} frame; it needs two or more")
        with np.errstate(invalid="ignore", divide="ignore"):  # of a quaternion of zeros
            obs = self.domain.observe(self.domain.split(physics))
        finite = np.isfinite(obs).all(axis=1)
        if not finite.all():
            raise UserError(
                f"{where}: frame {np.argmin(finite)} is no state of {self.domain.name}: what is "
                "observed in it is not finite"
            )
        self._digest.update(np.ascontiguousarray(physics).tobytes())
        self._taken += 1
        return {
            "episode": np.full(rows, self._taken - 1, np.int32),
            "step": np.arange(rows, dtype=np.int32),
            "obs": obs,
            "action": np.zeros((rows, self.domain.action_dim), np.float32),
            "physics": physics,
        }

    def _npz(self, path: Path) -> Iterator[tuple[str, Array]]:
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in _PARTS if name in file.files}
        except _UNREADABLE as error:
            raise UserError(
                f"{path}: cannot be read as an npz file; it is damaged, or of another kind"
            ) from error
        yield str(path), self._joined(str(path), found)

    def _hdf5(self, path: Path) -> Iterator[tuple[str, Array]]:
        import h5py  # an extra

        try:
            with h5py.File(path, "r") as file:
                names = [name for name in file if isinstance(file[name], h5py.Group)]
                names.sort(key=lambda name: (len(name), name))  # ep_9 before ep_10
                for name in ["/"] if "qpos" in file or not names else names:
                    group, where = file[name], str(path) if name == "/" else f"{path}, {name}"
                    found = {part: group[part] for part in _PARTS if part in group}
                    for part, values in found.items():
                        if not isinstance(values, h5py.Dataset):
                            raise UserError(f"{where}: {part} is no array")
                        found[part] = values[()]
                    yield where, self._joined(where, found)
        except OSError as error:
            said = str(error).splitlines()[0]
            raise UserError(f"{path}: cannot be read as an HDF5 file ({said})") from error

    def _joined(self, where: str, found: Mapping[str, Array]) -> Array:
        """Physics states (T, physics_dim) of a motion's arrays."""
        parts = []
        for name, size in _PARTS.items():
            width = int(getattr(self.domain.model, size))
            if name not in found and not width:
                continue
            if name not in found:
                raise UserError(f"{where}: no array '{name}'; a motion has {self._shapes()}")
            values = np.asarray(found[name])
            if values.dtype.kind not in "fiu":
                raise UserError(f"{where}: {name} is {values.dtype}; it must be real numbers")
            if values.ndim != 2 or values.shape[1] != width:
                raise UserError(
                    f"{where}: {name} is {values.dtype} of shape {values.shape}; a motion of "
                    f"{self.domain.name} has {self._shapes()}"
                )
            parts.append(values.astype(np.float64))
        if len({len(part) for part in parts}) > 1:
            raise UserError(f"{where}: its arrays have different numbers of frames")
        return np.concatenate(parts, axis=1)

    def _shapes(self) -> str:
        model = self.domain.model
        sizes = {name: int(getattr(model, size)) for name, size in _PARTS.items()}
        return ", ".join(f"{name} (T, {width})" for name, width in sizes.items() if width)

    def _trajectories(self, path: Path) -> Iterator[tuple[str, Array]]:
        columns, origin = read_table(path, "trajectories")
        whose = origin.settings.get("domain")
        if whose != self.domain.name or columns["physics"].shape[1] != self.domain.physics_dim:
            raise UserError(f"{path}: trajectories of {whose}; the domain is {self.domain.name}")
        own = self.domain.config.model_dump(mode="json")
        for name, value in origin.source.get("domain_settings", {}).items():
            if name not in OF_EPISODES and value != own.get(name):
                raise UserError(
                    f"{path}: trajectories of {whose} with {name} {value}; here it is "
                    f"{own.get(name)}"
                )
        unknown = set(self.config.tasks or ()) - set(columns["task"])
        if unknown:
            raise UserError(
                f"{path}: no task {min(unknown)}; it has {', '.join(sorted(set(columns['task'])))}"
            )
        taken = columns["phase"] == self.config.phase
        if self.config.tasks is not None:
            taken &= np.isin(columns["task"].astype(str), self.config.tasks)
        physics = columns["physics"][taken]
        for motion in np.split(physics, np.flatnonzero(columns["step"][taken] == 0)[1:]):
            yield str(path), motion


def fingerprint(path: str, domain: str) -> str | None:
    """A digest of the files' names, sizes and ends; None where there are no files.

    What ends an npz file has a checksum of every array, what ends a Parquet file the compressed
    size and range of every column. An HDF5 file has neither: when it was last changed counts too.
    """
    digest, files = hashlib.sha256(), _files(path, domain)
    for file in files:
        size, changed = file.stat().st_size, file.stat().st_mtime_ns
        named = f"{file} {size}" + (f" {changed}" if file.suffix in _HDF5 else "")
        with file.open("rb") as content:
            content.seek(max(0, size - _END))
            digest.update(f"{named}\n".encode() + content.read())
    return digest.hexdigest()[:16] if files else None


def _files(path: str, domain: str) -> list[Path]:
    pattern = str(Path(path.replace("{domain}", domain)).expanduser())
    found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    kinds = (".npz", ".parquet", *_HDF5)
    return [file for file in found if file.suffix in kinds and file.is_file()]


def _has_h5py() -> bool:
    try:
        import h5py  # noqa: F401 - an extra
    except ImportError:
        return False
    return True
