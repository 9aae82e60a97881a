"""A digest of the code that a stage can reach, which Snakemake reruns a rule by.

Snakemake does not see edits to an imported package. Each rule therefore carries, as a param, the
digest of what its stage imports inside bfmpipe, so that an edit reruns the stages it can change
and no others. Nothing is imported here: the imports are read from the syntax trees.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from bfmpipe.types import UserError, not_python

_PACKAGE = Path(__file__).parent
_CSRC_SUFFIXES = {".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".cmake", ".txt"}


def digest(*modules: str, own: Path | None = None, root: Path = _PACKAGE) -> str:
    """Hash what ``modules`` can reach inside the package: 16 hexadecimal digits.

    Hashed are the syntax trees of the reachable modules without comments and docstrings, the
    data files beside them with the same stem (``envs/point_mass_maze.xml``), and, where
    ``kernels`` is reached, the sources in the ``csrc`` directory beside the package, if there is
    one. Syntax trees, and so digests, may differ between versions of Python.

    Modules that are loaded by name (``plugins.load``) are reached by no import: name them too.

    Args:
        modules: dotted names, such as ``"bfmpipe.stages.pretrain"``.
        own: a directory with further modules of the package's packages (``plugins``).
        root: the package's directory; its name is the package's name.

    Raises:
        UserError: a name is no module of the package, or a module is not Python.
    """
    found = _closure(modules, root, own)
    total = hashlib.sha256()
    for name in sorted(found):
        path = found[name]
        _add(total, name, _read(path, name).tree)
        for file in _beside(path):
            home = root if file.is_relative_to(root) else own
            _add(total, file.relative_to(home or root).as_posix(), file.read_bytes())
    if f"{root.name}.kernels" in found:
        csrc = root.parent / "csrc"
        for file in sorted(csrc.rglob("*")):
            if file.suffix in _CSRC_SUFFIXES and file.is_file():
                _add(total, file.relative_to(csrc).as_posix(), file.read_bytes())
    return total.hexdigest()[:16]


def reachable(*modules: str, own: Path | None = None, root: Path = _PACKAGE) -> tuple[str, ...]:
    """Name the modules of the package that ``modules`` import, directly or not, sorted.

    ``modules`` themselves and the packages that hold a reached module are included. The top
    package's own ``__init__`` is not, unless asked for: it offers the public names lazily, and
    following it would reach everything. Imports inside functions are followed, imports under
    ``if TYPE_CHECKING:`` are not. Arguments and errors are those of `digest`.
    """
    return tuple(sorted(_closure(modules, root, own)))


def source_digest(source: bytes, filename: str) -> str:
    """Hash one file's syntax tree, without comments and docstrings: 16 hexadecimal digits.

    Args:
        source: what the file holds.
        filename: its name in messages.

    Raises:
        SyntaxError, ValueError: it is not Python.
    """
    return hashlib.sha256(_parse(source, "", filename).tree).hexdigest()[:16]


def _closure(modules: tuple[str, ...], root: Path, own: Path | None) -> dict[str, Path]:
    """Map the name of every reachable module to its file."""
    found: dict[str, Path] = {}
    for name in modules:
        path = _locate(name, root, own)
        if path is None:
            raise UserError(f"no module '{name}' in {root.name} ({root})")
        found[name] = path
    todo, seen = list(found), {*found, root.name}
    while todo:
        name = todo.pop()
        for candidate in (*_parents(name), *_read(found[name], name).imports):
            if candidate in seen:
                continue
            seen.add(candidate)
            path = _locate(candidate, root, own)
            if path is not None:
                found[candidate] = path
                todo.append(candidate)
    return found


def _locate(name: str, root: Path, own: Path | None) -> Path | None:
    """Find the file of a module of the package; None for anything else."""
    package, *parts = name.split(".")
    if package != root.name or not all(part.isidentifier() for part in parts):
        return None
    homes = (root, own) if own is not None and len(parts) > 1 else (root,)
    stems = [home.joinpath(*parts) for home in homes]
    candidates = (p for s in stems for p in (s / "__init__.py", s.with_name(f"{s.name}.py")))
    return next((path for path in candidates if path.is_file()), None)


def _parents(name: str) -> Iterator[str]:
    """Yield ``a`` and ``a.b`` for ``a.b.c``: importing a module runs its packages first."""
    parts = name.split(".")
    return (".".join(parts[:n]) for n in range(1, len(parts)))


def _beside(path: Path) -> list[Path]:
    """List the data files that share a module's stem, sorted."""
    code = (".py", ".so")  # also .pyc, .pyd, .pyi; compiled code is hashed as csrc
    return sorted(
        file
        for file in path.parent.glob(f"{path.stem}.*")
        if file.stem == path.stem
        and not file.suffix.startswith(code)
        and not file.suffix.endswith("~")
        and file.is_file()
    )


def _add(total: "hashlib._Hash", name: str, content: bytes) -> None:
    total.update(f"{name} {len(content)} ".encode())  # the length keeps neighbours apart
    total.update(content)


class _Module(NamedTuple):
    tree: bytes
    imports: tuple[str, ...]  # absolute names, which may be of modules or of what they hold


def _read(path: Path, name: str) -> _Module:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    try:
        return _parse(path.read_bytes(), package, str(path))
    except (SyntaxError, ValueError) as error:
        raise not_python(path, error) from None


@lru_cache(maxsize=1024)
def _parse(source: bytes, package: str, filename: str) -> _Module:
    tree = ast.parse(source, filename)
    imports: dict[str, None] = {}
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            node.body = []
        elif isinstance(body := getattr(node, "body", None), list):
            body[:] = [statement for statement in body if not _is_bare_string(statement)]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imports.update(dict.fromkeys(_imported(node, package)))
        nodes.extend(ast.iter_child_nodes(node))
    return _Module(ast.dump(tree).encode(), tuple(imports))


def _imported(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[str]:
    """Yield what an import statement may load, and the packages above it."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        parts = package.split(".")
        above = parts[: len(parts) - node.level + 1] if node.level else []
        base = ".".join([*above, *filter(None, [node.module])])
        names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
    for name in names:
        yield from _parents(name)
        yield name


def _is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", None)
    return name == "TYPE_CHECKING"


def _is_bare_string(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
