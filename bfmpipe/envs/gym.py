"""Gymnasium environments over the batched simulation: one task, one copy or many.

The actions are clipped to [-1, 1] and held in single precision, as data sets store them. Episodes
are never terminated, and truncated after the domain's `episode_steps`. `info["physics"]` is the
physics state, and `reset(options={"physics": state})` goes back to one.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from bfmpipe.envs.batched import BatchedEnv, threads
from bfmpipe.envs.domain import Domain
from bfmpipe.envs.rendering import Painter
from bfmpipe.envs.tasks import Task
from bfmpipe.types import Array, UserError


class TaskEnv(gymnasium.Env[Array, Array]):
    """One task of a domain; `bfmpipe.make` makes one by name.

    Args:
        domain: the domain.
        task: one of its tasks.
        render_mode: None or "rgb_array".
        arguments: of `make`, for `spec`, by which Gymnasium makes copies.
        height: of the pictures, in pixels.
        width: of the pictures, in pixels.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as in the base

    def __init__(
        self,
        domain: Domain,
        task: Task,
        *,
        render_mode: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        height: int = 240,
        width: int = 320,
    ) -> None:
        modes = self.metadata["render_modes"]
        if render_mode is not None and render_mode not in modes:
            raise UserError(f"no render_mode '{render_mode}'; there are None and {modes[0]}")
        self.domain = domain
        self.task = task
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": _fps(domain)}
        self.observation_space, self.action_space = _spaces(domain)
        if arguments is not None:
            self.spec = EnvSpec(
                f"bfmpipe/{domain.name}-{task.name}",
                entry_point="bfmpipe.envs.make:make",
                max_episode_steps=domain.config.episode_steps,
                kwargs=dict(arguments),
            )
        self._env = BatchedEnv(domain, 1, 1)
        self._steps_left = 0
        self._size = height, width
        self._painter: Painter | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Begin an episode, where the domain's tasks start or at `options["physics"]`."""
        super().reset(seed=seed)
        given = _given(options, (self.domain.physics_dim,))
        starts = self.domain.start_states(1, self.np_random) if given is None else given[None]
        obs = self._env.reset(starts)
        self._steps_left = self.domain.config.episode_steps
        return obs[0], self._info()

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Play one control step."""
        if self._steps_left == 0:
            raise ResetNeeded("the episode has ended, or none has begun: call reset")
        checked = _checked(action, (self.domain.action_dim,))[None]
        obs = self._env.step(checked)
        reward = self.task.reward(self.domain, self._env.reached(), checked)
        self._steps_left -= 1
        return obs[0], float(reward[0]), False, self._steps_left == 0, self._info()

    def render(self) -> Array | None:
        """The state as a picture (height, width, 3), uint8; None without a render_mode."""
        if self.render_mode is None:
            return None
        if self._painter is None:
            height, width = self._size
            self._painter = Painter(self.domain, width, height, self.task)
        return self._painter.draw(self._env.physics[0])

    def close(self) -> None:
        """Free what rendering holds."""
        if self._painter is not None:
            self._painter.close()
            self._painter = None

    def _info(self) -> dict[str, Any]:
        return {"physics": self._env.physics[0]}


class TaskVectorEnv(VectorEnv[Array, Array, Array]):
    """Many copies of one task, stepped as one batch; `bfmpipe.make_vec` makes one by name.

    All episodes end together, and the step after that begins the next ones: it plays no action
    and its rewards are 0, as is Gymnasium's default (`AutoresetMode.NEXT_STEP`).

    Args:
        domain: the domain.
        task: one of its tasks.
        num_envs: number of copies.
    """

    def __init__(self, domain: Domain, task: Task, num_envs: int) -> None:
        self._env = BatchedEnv(domain, num_envs, threads())
        self.domain = domain
        self.task = task
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_fps": _fps(domain)}
        self.single_observation_space, self.single_action_space = _spaces(domain)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._steps_left: int | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Begin all episodes, at `options["physics"]` (num_envs, physics_dim) if given.

        One generator, of `seed`, draws all start states.
        """
        super().reset(seed=seed)
        given = _given(options, (self.num_envs, self.domain.physics_dim))
        return self._begin(given)

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Play one control step in each copy."""
        if self._steps_left is None:
            raise ResetNeeded("no episode has begun: call reset")
        none = np.zeros(self.num_envs, bool)
        if self._steps_left == 0:
            obs, info = self._begin(None)
            return obs, np.zeros(self.num_envs), none, none.copy(), info
        checked = _checked(actions, (self.num_envs, self.domain.action_dim))
        obs = self._env.step(checked)
        reward = self.task.reward(self.domain, self._env.reached(), checked)
        self._steps_left -= 1
        truncated = np.full(self.num_envs, self._steps_left == 0)
        return obs, reward, none, truncated, self._info()

    def _begin(self, starts: Array | None) -> tuple[Array, dict[str, Any]]:
        if starts is None:
            starts = self.domain.start_states(self.num_envs, self.np_random)
        self._steps_left = self.domain.config.episode_steps
        return self._env.reset(starts), self._info()

    def _info(self) -> dict[str, Any]:
        # Gymnasium's convention: beside each entry, which copies have it
        return {"physics": self._env.physics, "_physics": np.ones(self.num_envs, bool)}


def _spaces(domain: Domain) -> tuple[Box, Box]:
    obs = Box(-np.inf, np.inf, (domain.obs_dim,), np.float32)
    return obs, Box(-1, 1, (domain.action_dim,), np.float32)


def _fps(domain: Domain) -> int:
    return max(1, round(1 / (domain.config.physics_steps * domain.model.opt.timestep)))


def _given(options: Mapping[str, Any] | None, shape: tuple[int, ...]) -> Array | None:
    """The physics states among the options of a reset, checked."""
    options = options or {}
    if unknown := [name for name in options if name != "physics"]:
        raise UserError(f"reset: options has '{unknown[0]}'; the only one is 'physics'")
    if options.get("physics") is None:
        return None
    return _numbers(options["physics"], shape, np.float64, "reset: options['physics']")


def _checked(action: Array, shape: tuple[int, ...]) -> Array:
    return np.clip(_numbers(action, shape, np.float32, "step: the action"), -1, 1)


def _numbers(value: object, shape: tuple[int, ...], dtype: type, what: str) -> Array:
    try:
        array: Array = np.asarray(value, dtype)
    except (TypeError, ValueError):
        raise UserError(f"{what} must be numbers of the shape {shape}") from None
    if array.shape != shape:
        raise UserError(f"{what} has the shape {array.shape}, not {shape}")
    if not np.isfinite(array).all():
        raise UserError(f"{what} holds {array[~np.isfinite(array)][0]}, no finite number")
    return array
