"""The directory is the registry: a module that defines its kind's class is a plugin.

In configurations methods and explorers are written with hyphens: ``zero-shot`` is
``adaptation/zero_shot.py``; domains and agents are written as their modules.
The interface itself, a class of that name derived from ``ABC``, is no plugin.

A second directory of the same layout, named by the environment variable ``BFMPIPE_PLUGINS``, may
hold modules of one's own: its ``adaptation/mine.py`` is then ``bfmpipe.adaptation.mine``, for
``import`` as well, wherever this module was imported.
"""

import ast
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from bfmpipe.types import UserError, at, meant, not_python, raised

#: The class that makes a module a plugin of each kind.
PLUGIN_CLASS = {
    "adaptation": "Method",
    "agents": "Agent",
    "data": "Explorer",
    "envs": "Domain",
    "models": "Model",
}

#: Where a kind's modules are, if not in the directory of its name: what can be loaded is more than
#: what can be trained, so an agent's module may have a Model and no Agent.
_DIRECTORY = {"models": "agents"}
_KINDS = tuple(sorted({_DIRECTORY.get(kind, kind) for kind in PLUGIN_CLASS}))
_HYPHENATED = ("adaptation", "data")
_PACKAGE = Path(__file__).parent
VARIABLE = "BFMPIPE_PLUGINS"


def use(directory: Path | str) -> None:
    """Take modules of one's own from a directory too, here and in all processes that this begins.

    Raises:
        UserError: it is no directory of modules.
    """
    os.environ[VARIABLE] = str(Path(directory).absolute())
    own_directory()


def own_directory() -> Path | None:
    """The directory of modules of one's own, if there is one.

    Raises:
        UserError: `BFMPIPE_PLUGINS` names no directory of modules.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    if not any(Path(named, kind).is_dir() for kind in _KINDS):
        lacks = "has none" if Path(named).is_dir() else "is no directory"
        raise UserError(
            f"{VARIABLE}: {named} {lacks}; name one that has modules in its directories "
            f"{', '.join(_KINDS)}"
        )
    return Path(named)


def names(kind: str, *, root: Path = _PACKAGE) -> tuple[str, ...]:
    """Name the plugins of a kind, sorted, importing none of them.

    A file that cannot be parsed is none; `load` says why when it is asked for.

    Args:
        kind: a key of `PLUGIN_CLASS`.
        root: the package's directory.

    Raises:
        UserError: there is no such kind, or a module of one's own has the name of another.
    """
    if kind not in PLUGIN_CLASS:
        raise UserError(f"no plugins of kind '{kind}'; there are {', '.join(PLUGIN_CLASS)}")
    stems = []
    for path in _modules(kind, root):
        with suppress(SyntaxError, ValueError, OSError):
            if _defines(path, PLUGIN_CLASS[kind]):
                stems.append(path.stem)
    if kind in _HYPHENATED:
        stems = [stem.replace("_", "-") for stem in stems]
    return tuple(sorted(stems))


def load(kind: str, name: str, *, root: Path = _PACKAGE) -> ModuleType:
    """Import the plugin ``name`` of a kind.

    Args:
        kind: a key of `PLUGIN_CLASS`.
        name: one of ``names(kind)``; nothing else is ever imported.
        root: the package's directory; its name is the package's name.

    Raises:
        UserError: there is no such kind or no such plugin, or its module cannot be imported or
            lacks a class.
    """
    dotted = module_name(kind, name, root=root)
    path = _file(kind, name, root)
    try:
        module = importlib.import_module(dotted)
    except UserError:
        raise
    except SyntaxError as error:
        file = error.filename or str(path)
        beside = "" if file == str(path) else f"{at(path, error)}: "
        raise UserError(f"{beside}{not_python(file, error)}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{at(path, error)}: {raised(error)}") from error
    lacks = [] if hasattr(module, "Config") else ["Config"]
    if kind == "agents" and not _defines(path, "Model"):  # what is trained must be loaded later
        lacks.append("Model")
    if lacks:
        raise UserError(f"{path}: defines no class {' and no class '.join(lacks)}")
    return module


def module_name(kind: str, name: str, *, root: Path = _PACKAGE) -> str:
    """Dotted name of the module of the plugin ``name``; arguments and errors as for `load`."""
    known = names(kind, root=root)
    package = f"{root.name}.{_DIRECTORY.get(kind, kind)}"
    if name not in known:
        is_name = name.replace("-", "_").isidentifier()
        why = _why_not(_file(kind, name, root), PLUGIN_CLASS[kind]) if is_name else ""
        raise UserError(
            f"no '{name}' in {package}{why}; it has {', '.join(known) or 'none'}"
            f"{meant(name, known)}"
        )
    return f"{package}.{name.replace('-', '_')}"


def is_own(kind: str, name: str) -> bool:
    """Whether the plugin ``name`` is a module of one's own."""
    return not _file(kind, name, _PACKAGE).is_relative_to(_PACKAGE)


def _file(kind: str, name: str, root: Path) -> Path:
    """Where the plugin ``name`` is, if there is one."""
    if kind in _HYPHENATED:
        name = name.replace("_", " ").replace("-", "_")  # it has one spelling
    there, *own = (directory / f"{name}.py" for directory in _directories(kind, root))
    return next((path for path in own if path.is_file() and not there.is_file()), there)


def _directories(kind: str, root: Path) -> list[Path]:
    """The package's directory of a kind, and the one of one's own."""
    own = own_directory() if root == _PACKAGE else None
    return [home / _DIRECTORY.get(kind, kind) for home in (root, own) if home is not None]


def _modules(kind: str, root: Path) -> list[Path]:
    """The files in these.

    Raises:
        UserError: two have the same name.
    """
    files: dict[str, Path] = {}
    for directory in _directories(kind, root):
        for path in sorted(directory.glob("[a-z]*.py")):
            if path.name in files:
                raise UserError(f"{path}: {files[path.name]} has this name; choose another")
            files[path.name] = path
    return list(files.values())


def _why_not(path: Path, name: str) -> str:
    """Why a file is no plugin, if there is one of that name.

    Raises:
        UserError: it is not Python.
    """
    if path.stem.startswith("_") or not path.is_file():
        return ""
    try:
        return "" if _defines(path, name) else f": {path.name} defines no class {name}"
    except (SyntaxError, ValueError) as error:
        raise not_python(path, error) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _defines(path: Path, name: str) -> bool:
    """Tell whether a file defines, at its top level, a class that is no abstract base."""
    tree = ast.parse(path.read_bytes(), str(path))
    return any(
        isinstance(node, ast.ClassDef)
        and node.name == name
        and not any(ast.unparse(base) in ("ABC", "abc.ABC") for base in node.bases)
        for node in tree.body
    )


class _OwnFinder:
    """Finds modules of one's own where the package's are not; what these import is found too."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, *within = name.split(".")
        home = os.environ.get(VARIABLE)
        if not home or package != _PACKAGE.name or len(within) != 2 or within[0] not in _KINDS:
            return None
        return PathFinder.find_spec(name, [str(Path(home).absolute() / within[0])], target)


sys.meta_path.append(_OwnFinder)  # last: the package's own come first
