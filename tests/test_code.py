import subprocess
import sys
import time
from pathlib import Path

import pytest

from bfmpipe import code
from bfmpipe.types import UserError

FILES = {
    "pipe/__init__.py": "from pipe.stages import other\n",
    "pipe/stages/__init__.py": "",
    "pipe/stages/train.py": '''
"""Train."""
from typing import TYPE_CHECKING
import torch
from pipe.agents import fb
from ..envs.maze import Maze
if TYPE_CHECKING:
    from pipe.stages import typing_only

def train():
    """Do it."""
    import pipe.kernels.adam  # late
    return fb, Maze
''',
    "pipe/stages/other.py": "x = 1\n",
    "pipe/stages/typing_only.py": "x = 1\n",
    "pipe/agents/__init__.py": "from . import shared\n",
    "pipe/agents/fb.py": "class Agent: pass\n",
    "pipe/agents/hilp.py": "class Agent: pass\n",
    "pipe/agents/shared.py": "x = 1\n",
    "pipe/envs/__init__.py": "",
    "pipe/envs/maze.py": "class Maze: pass\n",
    "pipe/envs/maze.xml": "<maze/>\n",
    "pipe/envs/maze_big.xml": "<maze/>\n",
    "pipe/kernels/__init__.py": "from ._ops import adam\n",
    "pipe/kernels/adam.py": "x = 1\n",
    "csrc/cpu/adam.cpp": "int x;\n",
    "csrc/notes.md": "notes\n",
}
TRAIN = "pipe.stages.train"


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "pipe"


def replace(root: Path, name: str, old: str, new: str) -> None:
    path = root.parent / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_imports_are_followed(root):
    assert code.reachable(TRAIN, root=root) == (
        "pipe.agents",
        "pipe.agents.fb",  # from a package
        "pipe.agents.shared",  # by the package of a module reached
        "pipe.envs",
        "pipe.envs.maze",  # relative
        "pipe.kernels",
        "pipe.kernels.adam",  # in a function
        "pipe.stages",
        "pipe.stages.train",
    )


def test_cycles_end(root):
    (root / "stages/other.py").write_text("from pipe.stages import train\n")
    replace(root, "pipe/stages/train.py", "import torch", "from . import other")
    assert "pipe.stages.other" in code.reachable(TRAIN, root=root)


@pytest.mark.parametrize(
    "statement",
    [
        "import pipe.stages.other",
        "import os, pipe.stages.other as o",
        "from pipe.stages.other import x",
        "from pipe.stages import train, other",
        "from . import other",
        "from .other import *",
        "from ..stages.other import x",
        "from .. import stages\nclass A:\n  if stages:\n    from .other import x",
        "if TYPE_CHECKING: pass\nelse:\n  from . import other",
        "try:\n  import nothing\nexcept ImportError:\n  from . import other",
    ],
)
def test_every_form_of_import(root, statement):
    (root / "stages/start.py").write_text(statement)
    assert "pipe.stages.other" in code.reachable("pipe.stages.start", root=root)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("pipe/stages/train.py", "# late", "# still late"),
        ("pipe/stages/train.py", '"""Do it."""', '"""Do it well."""'),
        ("pipe/stages/train.py", '"""Train."""', ""),
        ("pipe/stages/train.py", "\n\n", "\n\n\n\n"),
        ("pipe/stages/typing_only.py", "x = 1", "x = 2"),
        ("pipe/stages/other.py", "x = 1", "x = 2"),
        ("pipe/agents/hilp.py", "pass", "x = 2"),
        ("pipe/envs/maze_big.xml", "maze", "labyrinth"),
        ("pipe/__init__.py", "other", "train"),
        ("csrc/notes.md", "notes", "more notes"),
    ],
)
def test_what_cannot_matter_keeps_the_digest(root, name, old, new):
    before = code.digest(TRAIN, root=root)
    replace(root, name, old, new)
    assert code.digest(TRAIN, root=root) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("pipe/stages/train.py", "return fb, Maze", "return Maze, fb"),
        ("pipe/stages/train.py", "def train()", "def train(x)"),
        ("pipe/agents/__init__.py", "shared", "shared as s"),
        ("pipe/agents/shared.py", "1", "2"),
        ("pipe/kernels/adam.py", "1", "'1'"),
        ("pipe/envs/maze.xml", "maze", "labyrinth"),
        ("csrc/cpu/adam.cpp", "int", "long"),
    ],
)
def test_what_can_matter_changes_the_digest(root, name, old, new):
    before = code.digest(TRAIN, root=root)
    replace(root, name, old, new)
    assert code.digest(TRAIN, root=root) != before


def test_files_that_appear_or_move_change_the_digest(root):
    digests = [code.digest(TRAIN, root=root)]
    (root / "envs/maze.json").write_text("{}")
    digests.append(code.digest(TRAIN, root=root))
    (root.parent / "csrc/cpu/adam.cpp").rename(root.parent / "csrc/cpu/sgd.cpp")
    digests.append(code.digest(TRAIN, root=root))
    assert len(set(digests)) == 3


def test_build_products_and_backups_are_no_code(root):
    before = code.digest(TRAIN, root=root)
    for name in ("adam.cpython-311.so", "adam.so", "adam.pyc", "adam.py~"):
        (root / "kernels" / name).write_text("")
    assert code.digest(TRAIN, root=root) == before


def test_csrc_counts_only_where_kernels_are_reached(root):
    before = code.digest("pipe.envs.maze", root=root)
    replace(root, "csrc/cpu/adam.cpp", "int", "long")
    assert code.digest("pipe.envs.maze", root=root) == before


def test_an_installed_package_has_no_csrc(root):
    (root.parent / "csrc").rename(root.parent / "elsewhere")
    assert len(code.digest(TRAIN, root=root)) == 16


def test_the_order_of_the_modules_is_free(root):
    names = (TRAIN, "pipe.agents.hilp")
    assert code.digest(*names, root=root) == code.digest(*reversed(names), root=root)
    assert code.digest(*names, root=root) != code.digest(TRAIN, root=root)


def test_the_digest_is_the_same_in_another_process(root):
    call = "import pathlib, sys; from bfmpipe import code"
    call += "; print(code.digest(sys.argv[1], root=pathlib.Path(sys.argv[2])))"
    out = subprocess.check_output([sys.executable, "-c", call, TRAIN, str(root)], text=True)
    assert out.strip() == code.digest(TRAIN, root=root)


@pytest.mark.parametrize("name", ["pipe.stages.nothing", "torch", "pipe.stages/train", "pipe..x"])
def test_unknown_modules(root, name):
    with pytest.raises(UserError, match=f"no module '{name}' in pipe"):
        code.digest(name, root=root)


def test_the_whole_of_bfmpipe_takes_no_time():
    root = Path(code.__file__).parent
    files = [f.relative_to(root.parent).with_suffix("") for f in root.rglob("*.py")]
    names = [".".join(f.parts).removesuffix(".__init__") for f in files]
    first, again = [], []
    for _ in range(3):  # the quickest of three: others use the core too
        code._parse.cache_clear()
        for times in (first, again):
            start = time.process_time()
            code.digest(*names)
            times.append(time.process_time() - start)
    assert min(first) < 1
    assert min(again) < 0.05
