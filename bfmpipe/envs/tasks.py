"""Tasks: a domain's own, and those that a user writes as functions over arrays.

A reward of one's own is a function

    reward(physics, action) -> (n,)

of n states and the actions (n, action_dim) that led to them. `physics` is the domain's `Physics`:
its attributes are arrays of n rows. The same function steps and relabels, n is whatever the caller
has at hand, and each row must be computed from itself alone.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import numpy as np

from bfmpipe.code import source_digest
from bfmpipe.config import Config
from bfmpipe.types import Array, UserError, at, meant, not_python, raised

if TYPE_CHECKING:
    from bfmpipe.envs.domain import Domain

Function = Callable[[Any, Array], Array]
"""A reward of one's own: (physics, action) -> (n,)."""

D = TypeVar("D", bound="Domain")

_CHECKED = 4  # states a distribution that a function is tried on before it is used


@dataclass(frozen=True)
class Task:
    """One reward function of a domain: its name, its settings, and the family it is reported in."""

    family: str
    name: str
    settings: Config

    def __str__(self) -> str:
        """The name in messages and tables: family/name."""
        return f"{self.family}/{self.name}"

    def reward(self, domain: "Domain", physics: "Physics[Any]", action: Array) -> Array:
        """Rewards (n,), float64: `action` (n, action_dim) led to the states of `physics`."""
        return domain.reward(self, physics, action)


class TaskFile(Config):
    """Settings of a family whose tasks are functions of a Python file."""

    file: str
    digest: str = ""
    """`digest` of the file, if what it says must not have changed since."""


def quantity(compute: Callable[[Any], Array]) -> "functools.cached_property[Array]":
    """Make a method of `Physics` an attribute: computed when asked for, once, and read-only."""

    @functools.wraps(compute)
    def computed(physics: "Physics[Any]") -> Array:
        if physics._whole is not None:
            return _locked(getattr(physics._whole, compute.__name__)[physics._rows])
        return _locked(compute(physics))

    return functools.cached_property(computed)


class Physics(Generic[D]):
    """What a reward can be made of, of n states; every attribute is a read-only float64 array.

    A domain adds named quantities of its own. The MjData fields that it simulates and stores are
    there under MuJoCo's names.
    """

    _whole: "Physics[D] | None" = None
    _rows: Array | slice = slice(None)

    def __init__(self, domain: D, fields: Mapping[str, Array]) -> None:
        self.domain = domain
        self._fields = fields

    def rows(self, rows: Array | slice) -> Self:
        """Some of the states. What is asked of them is computed of all, once for everyone."""
        part = type(self)(self.domain, {n: self._fields[n][rows] for n in self.domain.fields})
        part._whole, part._rows = self, rows
        return part

    @quantity
    def qpos(self) -> Array:
        """Positions of the joints (n, nq), in MuJoCo's order."""
        return self._fields["qpos"]

    @quantity
    def qvel(self) -> Array:
        """Velocities of the joints (n, nv)."""
        return self._fields["qvel"]

    @classmethod
    def quantities(cls) -> tuple[str, ...]:
        """Names of the attributes that every state has, the general ones first."""
        found = [name for c in reversed(cls.__mro__) for name in vars(c)]
        is_one = functools.cached_property
        return tuple(
            n
            for n in dict.fromkeys(found)
            if not n.startswith("_") and isinstance(getattr(cls, n), is_one)
        )

    def __getattr__(self, name: str) -> Array:
        if name.startswith("_") or name == "domain":  # while it is being copied, it has neither
            raise AttributeError(name)
        if name not in self.domain.fields:
            valid = dict.fromkeys((*self.quantities(), *self.domain.fields))
            raise AttributeError(
                f"physics of {self.domain.name} has no '{name}'; it has {', '.join(valid)}"
            )
        return _locked(self._fields[name])


@dataclass(frozen=True)
class OwnTask(Task):
    """A task whose reward is a user's function."""

    function: Function = field(repr=False)

    def reward(self, domain: "Domain", physics: "Physics[Any]", action: Array) -> Array:
        """What the function returns, checked.

        Raises:
            UserError: where it fails, or returns anything but n finite numbers.
        """
        try:
            value = self.function(physics, _locked(action.astype(np.float64)))
        except (Exception, SystemExit) as error:
            hint = ""
            if isinstance(error, ValueError) and "read-only" in str(error):
                hint = "; a reward must not write to what it is given"
            raise UserError(f"{self.label(error)}: {raised(error)}{hint}") from error
        return self._checked(value, len(action))

    def _checked(self, value: object, n: int) -> Array:
        label = self.label()
        wanted = f"a reward is a NumPy array of {n} numbers here, one a state"
        if not isinstance(value, np.ndarray):
            raise UserError(f"{label}: returned {_article(type(value).__name__)}; {wanted}")
        if value.shape != (n,):
            raise UserError(f"{label}: returned the shape {value.shape}, not ({n},); {wanted}")
        if value.dtype.kind not in "fiub":
            raise UserError(f"{label}: returned the type {value.dtype}; {wanted}")
        reward = value.astype(np.float64)
        if not (finite := np.isfinite(reward)).all():
            bad = reward[~finite]
            raise UserError(
                f"{label}: returned {bad[0]} for {len(bad)} of {n} states; every reward must "
                "be a finite number"
            )
        return reward

    def label(self, error: BaseException | None = None) -> str:
        """Name the task, the file of its function, and the line of it that `error` came from."""
        code = getattr(inspect.unwrap(self.function), "__code__", None)
        return f"task {self}" + (f" ({at(code.co_filename, error)})" if code else "")


def own_task(
    domain: "Domain",
    function: Function,
    *,
    family: str,
    name: str,
    settings: Config,
    where: str,
) -> OwnTask:
    """A task of a function, tried on a few states.

    Args:
        domain: whose task it becomes.
        function: the reward.
        family: the family it is reported in.
        name: of the task; none that the domain has.
        settings: kept with the task.
        where: what a message begins with.

    Raises:
        UserError: the name is taken, or the function does not keep to what a reward is.
    """
    if not name.isidentifier():
        raise UserError(f"{where}: '{name}' is no name for a task; letters, digits and _ are")
    if domain.has_task(name):
        raise UserError(
            f"{where}: {domain.name} has a task '{name}' already; give the function another name"
        )
    if not callable(function):
        kind = _article(type(function).__name__)
        raise UserError(f"{where}: the reward '{name}' is {kind}, not a function")
    signature = inspect.signature(function)
    try:
        signature.bind(None, None)
    except TypeError:
        raise UserError(
            f"{where}: {name}{signature} cannot be called as {name}(physics, action)"
        ) from None
    task = OwnTask(family, name, settings, function)
    try:
        _try_out(task, domain)
    except UserError as error:
        raise UserError(f"domain {domain.name}: {error}") from error
    return task


def _try_out(task: OwnTask, domain: "Domain") -> None:
    """Find mistakes before hours of computation do."""
    rng, model = np.random.default_rng(0), domain.model
    drawn = [domain.start_states(_CHECKED, rng), domain.exploration_states(_CHECKED, rng)]
    physics = np.concatenate(drawn)
    physics += 0.01 * rng.normal(size=physics.shape)  # where starts are alike, and at rest
    physics[:, model.nq : model.nq + model.nv] += rng.normal(size=(len(physics), model.nv))
    action = rng.uniform(-1, 1, (len(physics), domain.action_dim))
    together = domain.relabel(task, physics, action)
    if not np.array_equal(domain.relabel(task, physics, action), together):
        raise UserError(
            f"{task.label()}: gave the same states other rewards when it was called again; they "
            "must depend on physics and action alone"
        )
    rows = [slice(i, i + 1) for i in range(len(physics))]
    alone = np.concatenate([domain.relabel(task, physics[row], action[row]) for row in rows])
    if not np.allclose(alone, together, rtol=1e-9, atol=1e-12):
        raise UserError(
            f"{task.label()}: the reward of a state depends on the states beside it; each must be "
            "computed from its own row alone"
        )


def file_tasks(
    domain: "Domain", family: str, names: list[str], settings: TaskFile, where: str
) -> list[OwnTask]:
    """Tasks that are functions of a file; arguments and errors as for `own_task`."""
    functions = _functions(settings, where)
    if unknown := [name for name in names if name not in functions]:
        known = ", ".join(functions) or "none"
        raise UserError(
            f"{where}: {settings.file} has no function '{unknown[0]}'; it has {known}"
            f"{meant(unknown[0], functions)}"
        )
    return [
        own_task(domain, functions[name], family=family, name=name, settings=settings, where=where)
        for name in names
    ]


def digest(file: Path | str) -> str:
    """Digest of a task file's code: comments and docstrings do not count.

    Raises:
        UserError: there is no such file, or it is not Python.
    """
    source = _source(file)
    try:
        return source_digest(source, str(file))
    except (SyntaxError, ValueError) as error:
        raise not_python(file, error) from None


def _functions(settings: TaskFile, where: str) -> dict[str, Function]:
    """Run a file; the public functions that it defines."""
    file = settings.file
    try:
        found = digest(file)
        if settings.digest and settings.digest != found:
            raise UserError(
                f"{file} has changed: its digest is {found}, not {settings.digest} as these "
                "settings have it; run snakemake again, or leave the digest out"
            )
        module = _run(file, f"bfmpipe_task_file_{found}")
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and inspect.isfunction(value)
        and value.__module__ == module.__name__
    }


def _run(file: str, name: str) -> ModuleType:
    module = ModuleType(name)
    module.__file__ = file
    sys.modules[name] = module  # dataclasses and their like look their module up
    try:
        exec(compile(_source(file), file, "exec"), vars(module))
    except (SyntaxError, ValueError) as error:
        if isinstance(error, SyntaxError) and error.filename == file:
            raise not_python(file, error) from None
        raise UserError(f"{at(file, error)}: {raised(error)}") from error
    except (Exception, SystemExit) as error:
        hint = ""
        if isinstance(error, ImportError):
            hint = "; a file of tasks may import installed packages, and none of its neighbours"
        raise UserError(f"{at(file, error)}: {raised(error)}{hint}") from error
    return module


def _source(file: Path | str) -> bytes:
    try:
        return Path(file).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; it should be Python with a function a task") from (
            None
        )
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None


def _article(noun: str) -> str:
    return f"an {noun}" if noun[:1].lower() in "aeiou" else f"a {noun}"


def _locked(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view
