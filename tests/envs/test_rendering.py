"""Pictures, where this machine has OpenGL: each backend is tried in a process of its own."""

import os
import subprocess
import sys

import numpy as np
import pytest

from bfmpipe.envs import make_domain
from bfmpipe.envs.rendering import render
from bfmpipe.types import UserError

DRAW = """
import sys
import numpy as np
from bfmpipe import plugins
from bfmpipe.envs import make_domain
from bfmpipe.envs.rendering import render

pictures = {}
for name in plugins.names("envs"):
    domain = make_domain(name, {})
    states = domain.start_states(2, np.random.default_rng(0))
    pictures[name] = render(domain, states, 64, 48)
    assert np.array_equal(render(domain, states[1], 64, 48), pictures[name][1])
    assert render(domain, states[0], 1000, 800).shape == (800, 1000, 3)
np.savez(sys.argv[1], **pictures)
"""


def with_backend(name, code, *arguments):
    env = {**os.environ, "MUJOCO_GL": name}
    env.pop("PYOPENGL_PLATFORM", None)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def backend():
    failed = []
    for name in ("egl", "osmesa"):
        made = with_backend(name, "import mujoco; mujoco.GLContext(8, 8).make_current()")
        if made.returncode == 0:
            return name
        failed.append(f"{name}: {made.stderr.strip().splitlines()[-1]}")
    pytest.skip("no OpenGL without a display here; " + "; ".join(failed))


TARGETS = """
import sys
import numpy as np
from bfmpipe.envs import make_domain
from bfmpipe.envs.rendering import render

domain = make_domain("point_mass_maze", {})
before = domain.model.site("target").pos.copy()
state = np.array([0.0, 0.28, 0, 0])  # the ball is out of the way
pictures = {"none": render(domain, state, 240, 240)}
for name in ("reach_top_left", "reach_bottom_right", "square", "reach_bottom_left_long"):
    for size in (0.05, 0.02):
        (task,) = domain.tasks("t", [name], {"target_size": size})
        pictures[f"{name} {size}"] = render(domain, state, 240, 240, task)
assert np.array_equal(domain.model.site("target").pos, before)
np.savez(sys.argv[1], **pictures)
"""


def test_the_mazes_target_is_drawn_where_and_as_large_as_it_is(backend, tmp_path):
    drawn = with_backend(backend, TARGETS, tmp_path / "pictures.npz")
    assert drawn.returncode == 0, drawn.stderr
    pictures = {name: x.astype(int) for name, x in np.load(tmp_path / "pictures.npz").items()}
    assert np.array_equal(pictures["square 0.05"], pictures["none"])

    def marked(name):
        """Rows and columns, from the middle, where the picture is not the empty maze's."""
        changed = np.abs(pictures[name] - pictures["none"]).sum(-1) > 10
        assert changed.any(), name
        return np.argwhere(changed) - 119.5

    for name, row, column in (
        ("reach_top_left", -1, -1),
        ("reach_bottom_right", 1, 1),
        ("reach_bottom_left_long", 1, -1),
    ):
        large, small = marked(f"{name} 0.05"), marked(f"{name} 0.02")
        assert (np.sign(large) == (row, column)).all()
        assert np.abs(large.mean(0) - small.mean(0)).max() < 2
        assert len(large) / len(small) == pytest.approx(6.25, rel=0.25)


def test_every_domains_states_are_drawn(backend, tmp_path):
    drawn = with_backend(backend, DRAW, tmp_path / "pictures.npz")
    assert drawn.returncode == 0, drawn.stderr
    for name, pictures in np.load(tmp_path / "pictures.npz").items():
        assert pictures.shape == (2, 48, 64, 3), name
        assert pictures.dtype == np.uint8
        for picture in pictures:
            assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10, name
        assert not np.array_equal(*pictures), name


def test_without_opengl_one_sentence_says_what_to_set():
    code = (
        "from bfmpipe.envs import make_domain\nfrom bfmpipe.envs.rendering import render\n"
        "import numpy as np\nfrom bfmpipe.types import UserError\n"
        "try: render(make_domain('point_mass_maze', {}), np.zeros(4))\n"
        "except UserError as error: print(error)"
    )
    said = with_backend("disabled", code).stdout
    assert said.startswith("no picture can be drawn without OpenGL; set MUJOCO_GL to egl")


@pytest.mark.parametrize("shape", [(), (3,), (2, 5), (1, 1, 4)])
def test_states_of_another_shape_are_refused(shape):
    with pytest.raises(UserError, match="point_mass_maze: a physics state has 4 entries"):
        render(make_domain("point_mass_maze", {}), np.zeros(shape))
