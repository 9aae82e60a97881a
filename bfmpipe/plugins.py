"""The directory is the registry: a module that defines its kind's class is a plugin.

In configurations methods and explorers are written with hyphens: ``zero-shot`` is
``adaptation/zero_shot.py``; domains and agents are written as their modules.
The interface itself, a class of that name derived from ``ABC``, is no plugin.
"""

import ast
import importlib
from pathlib import Path
from types import ModuleType

from bfmpipe.types import UserError, meant

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
_HYPHENATED = ("adaptation", "data")
_PACKAGE = Path(__file__).parent


def names(kind: str, *, root: Path = _PACKAGE) -> tuple[str, ...]:
    """Name the plugins of a kind, sorted, importing none of them.

    Args:
        kind: a key of `PLUGIN_CLASS`.
        root: the package's directory.

    Raises:
        UserError: there is no such kind.
    """
    if kind not in PLUGIN_CLASS:
        raise UserError(f"no plugins of kind '{kind}'; there are {', '.join(PLUGIN_CLASS)}")
    found = (root / _DIRECTORY.get(kind, kind)).glob("[a-z]*.py")
    stems = [path.stem for path in found if _defines(path, PLUGIN_CLASS[kind])]
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
        UserError: there is no such kind or no such plugin.
    """
    return importlib.import_module(module_name(kind, name, root=root))


def module_name(kind: str, name: str, *, root: Path = _PACKAGE) -> str:
    """Dotted name of the module of the plugin ``name``; arguments and errors as for `load`."""
    known = names(kind, root=root)
    package = f"{root.name}.{_DIRECTORY.get(kind, kind)}"
    if name not in known:
        raise UserError(
            f"no '{name}' in {package}; it has {', '.join(known) or 'none'}{meant(name, known)}"
        )
    return f"{package}.{name.replace('-', '_')}"


def _defines(path: Path, name: str) -> bool:
    """Tell whether a file defines, at its top level, a class that is no abstract base."""
    tree = ast.parse(path.read_bytes(), str(path))
    return any(
        isinstance(node, ast.ClassDef)
        and node.name == name
        and not any(ast.unparse(base) in ("ABC", "abc.ABC") for base in node.bases)
        for node in tree.body
    )
