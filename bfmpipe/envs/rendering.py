"""Pictures of physics states, by MuJoCo's renderer.

It needs OpenGL, which MUJOCO_GL chooses before Python starts: egl, osmesa or glfw, whichever the
machine has. The pipeline's jobs set it to `disabled`, since most of them draw nothing.
"""

import mujoco
import numpy as np

from bfmpipe.envs.domain import Domain
from bfmpipe.types import Array, UserError


def render(domain: Domain, physics: Array, width: int = 320, height: int = 240) -> Array:
    """Draw states as the domain's camera sees them.

    Args:
        domain: the states' domain.
        physics: a physics state (physics_dim,), or n of them (n, physics_dim).
        width: of a picture, in pixels.
        height: of a picture, in pixels.

    Returns:
        A picture (height, width, 3), uint8, or n of them (n, height, width, 3).

    Raises:
        UserError: where there is no OpenGL, or the states are another domain's.
    """
    states = np.atleast_2d(physics)
    if states.ndim != 2 or states.shape[1] != domain.physics_dim or np.ndim(physics) == 0:
        raise UserError(
            f"{domain.name}: a physics state has {domain.physics_dim} entries; "
            f"what is to be drawn has the shape {np.shape(physics)}"
        )
    painter = Painter(domain, width, height)
    try:
        pictures = np.stack([painter.draw(state) for state in states])
    finally:
        painter.close()
    return pictures if np.ndim(physics) == 2 else pictures[0]


class Painter:
    """Draws one state after the other; `close` frees what it holds.

    Args:
        domain: the states' domain.
        width: of a picture, in pixels.
        height: of a picture, in pixels.

    Raises:
        UserError: where there is no OpenGL.
    """

    def __init__(self, domain: Domain, width: int, height: int) -> None:
        model = domain.model
        # pictures may be larger than the model's buffer
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, height)
        self._domain, self._data = domain, mujoco.MjData(model)
        self._renderer = _renderer(model, width, height)

    def draw(self, physics: Array) -> Array:
        """The picture (height, width, 3), uint8, of a physics state (physics_dim,)."""
        model = self._domain.model
        for name, value in self._domain.split(physics[None]).items():
            getattr(self._data, name)[:] = value[0]
        mujoco.mj_forward(model, self._data)
        self._renderer.update_scene(self._data, camera=self._domain.camera if model.ncam else -1)
        return self._renderer.render()

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()


def _renderer(model: mujoco.MjModel, width: int, height: int) -> mujoco.Renderer:
    try:
        return mujoco.Renderer(model, height, width)
    except Exception as error:  # every backend of OpenGL has exceptions of its own
        raise UserError(
            "no picture can be drawn without OpenGL; set MUJOCO_GL to egl, osmesa or glfw, "
            f"whichever this machine has, before Python starts ({type(error).__name__})"
        ) from error
