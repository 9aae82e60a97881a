"""Pictures of physics states, by MuJoCo's renderer.

It needs OpenGL, which MUJOCO_GL chooses before Python starts: egl, osmesa or glfw, whichever the
machine has. The pipeline's jobs set it to `disabled`, since most of them draw nothing.
"""

import copy
import math
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import mujoco
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bfmpipe.envs.domain import Domain, Task
from bfmpipe.files import replacing
from bfmpipe.progress import progress
from bfmpipe.types import Array, UserError

FILM_KINDS = (".gif", ".mp4", ".png")

_TILE = (320, 240)
_STRIP = 16  # pixels, for a caption
_MOST = 9  # episodes side by side
_MOMENTS = 6  # of an episode, where the film is one picture
_SHORTEST = 0.05  # seconds a picture: 20 a second show how a body moves


def render(
    domain: Domain,
    physics: Array,
    width: int = 320,
    height: int = 240,
    task: Task | None = None,
) -> Array:
    """Draw states as the domain's camera sees them.

    Args:
        domain: the states' domain.
        physics: a physics state (physics_dim,), or n of them (n, physics_dim).
        width: of a picture, in pixels.
        height: of a picture, in pixels.
        task: what to show of it, such as a target.

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
    painter = Painter(domain, width, height, task)
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
        task: what to show of it, such as a target.

    Raises:
        UserError: where there is no OpenGL.
    """

    def __init__(self, domain: Domain, width: int, height: int, task: Task | None = None) -> None:
        model = self._model = copy.copy(domain.model)
        domain.show(model, task)
        # pictures may be larger than the model's buffer
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, height)
        self._domain, self._data = domain, mujoco.MjData(model)
        self._renderer = _renderer(model, width, height)

    def draw(self, physics: Array) -> Array:
        """The picture (height, width, 3), uint8, of a physics state (physics_dim,)."""
        model = self._model
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


def check_film(domain: Domain, path: Path) -> None:
    """Find out before the states are there whether `film` can draw them.

    Raises:
        UserError: for a path of another kind, or where a program or OpenGL is missing.
    """
    kind = path.suffix.lower()
    if kind not in FILM_KINDS:
        raise UserError(f"{path}: no kind of film; valid: {', '.join(FILM_KINDS)}")
    if kind == ".mp4" and shutil.which("ffmpeg") is None:
        raise UserError(
            f"{path}: an .mp4 is made by the program ffmpeg, which this machine does not have; "
            "name a .gif"
        )
    Painter(domain, *_TILE).close()


def film(
    domain: Domain,
    path: Path,
    physics: Array,
    caption: Callable[[int, int], str],
    task: Task | None = None,
) -> None:
    """Draw episodes side by side, nine at most, as they passed; whole or not at all.

    A .gif or an .mp4 moves at the speed of the simulation. A .png is one picture: a row an episode,
    six moments of it from left to right.

    Args:
        domain: the states' domain.
        path: the file to write; its suffix says which.
        physics: (steps, n, physics_dim), n episodes.
        caption: what to write into the picture of (step, episode).
        task: what to show of it, such as a target.

    Raises:
        UserError: see `check_film`; or where ffmpeg fails.
    """
    check_film(domain, path)
    kind, steps = path.suffix.lower(), len(physics)
    episodes = range(min(physics.shape[1], _MOST))
    seconds = domain.config.physics_steps * domain.model.opt.timestep
    stride = math.ceil(_SHORTEST / seconds - 1e-9)
    if kind == ".png":
        moments = np.linspace(0, steps - 1, _MOMENTS).round().astype(int).tolist()
        pictures, columns = [[(step, e) for e in episodes for step in moments]], _MOMENTS
    else:
        pictures = [[(step, e) for e in episodes] for step in range(0, steps, stride)]
        columns = math.ceil(math.sqrt(len(episodes)))
    painter = Painter(domain, *_TILE, task)
    total = len(pictures) * len(pictures[0])
    with replacing(path) as temporary, progress(total, f"draw {path}", "picture") as bar:

        def draw(step: int, episode: int) -> Array:
            bar.update(1)
            return _captioned(painter.draw(physics[step, episode]), caption(step, episode))

        def frames() -> Iterator[Array]:
            for tiles in pictures:
                yield _grid([draw(*tile) for tile in tiles], columns)

        try:
            if kind == ".mp4":
                _write_mp4(temporary, frames(), 1 / (stride * seconds))
            else:
                _write_pictures(temporary, frames(), kind, stride * seconds)
        finally:
            painter.close()


def _captioned(picture: Array, text: str) -> Array:
    """The picture (height, width, 3) below a strip of text."""
    strip = Image.new("RGB", (picture.shape[1], _STRIP))
    ImageDraw.Draw(strip).text((4, 2), text, "white", ImageFont.load_default())
    return np.vstack([np.asarray(strip), picture])


def _grid(tiles: list[Array], columns: int) -> Array:
    """Pictures (height, width, 3) row by row, what is left over black."""
    rows = math.ceil(len(tiles) / columns)
    blank = np.zeros_like(tiles[0])
    tiles = tiles + [blank] * (rows * columns - len(tiles))
    return np.vstack([np.hstack(tiles[i * columns : (i + 1) * columns]) for i in range(rows)])


def _write_pictures(path: Path, frames: Iterable[Array], kind: str, seconds: float) -> None:
    images = (Image.fromarray(frame) for frame in frames)
    first = next(images)
    if kind == ".png":
        first.save(path, "PNG")
        return
    hundredths = max(1, round(100 * seconds))  # what a GIF counts in
    first.save(path, "GIF", save_all=True, append_images=images, duration=10 * hundredths, loop=0)


def _write_mp4(path: Path, frames: Iterator[Array], rate: float) -> None:
    first = next(frames)
    height, width, _ = first.shape
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{rate:.6g}"]
    command = ["ffmpeg", "-loglevel", "error", "-y", *raw, "-i", "-"]
    command += ["-pix_fmt", "yuv420p", "-f", "mp4", f"file:{path}"]  # what players can play
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        try:
            process.stdin.write(first.tobytes())
            for frame in frames:
                process.stdin.write(frame.tobytes())
        except BrokenPipeError:
            pass  # it says why
        said = process.communicate()[1].decode(errors="replace").strip()
    if process.returncode:
        raise UserError(f"ffmpeg failed: {said.splitlines()[-1] if said else 'it said nothing'}")
