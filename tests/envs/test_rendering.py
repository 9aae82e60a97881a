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
