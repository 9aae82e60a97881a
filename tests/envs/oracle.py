"""What dm_control itself makes of start states and actions, one environment at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from bfmpipe.envs.batched import BatchedEnv
from bfmpipe.envs.domain import Domain
from bfmpipe.types import Array


@dataclass
class Record:
    """steps control steps of n environments: what each led to, in float64.

    actions (steps, n, action_dim), states (steps, n, physics_dim), obs (steps, n, obs_dim),
    sensors (steps, n, nsensordata), rewards: task -> (steps, n); first_obs (n, obs_dim), on reset.
    """

    starts: Array
    actions: Array
    states: Array
    obs: Array
    sensors: Array
    rewards: dict[str, Array]
    first_obs: Array


def record(
    env: Any, starts: Array, actions: Array, rewards: Mapping[str, Callable[[Any], float]]
) -> Record:
    """Play `actions` from `starts` in dm_control's `env`; `rewards` take its physics."""
    physics, (steps, n, _) = env.physics, actions.shape
    model = physics.model.ptr
    states = np.empty((steps, n, starts.shape[1]))
    sensors = np.empty((steps, n, model.nsensordata))
    paid = {name: np.empty((steps, n)) for name in rewards}
    obs, first = [], []
    for i in range(n):
        env.reset()
        with physics.reset_context():
            physics.set_state(starts[i])
        physics.data.qacc_warmstart[:] = 0  # which a physics state does not hold
        first.append(_flat(env.task.get_observation(physics)))
        for t in range(steps):
            step = env.step(actions[t, i])
            states[t, i] = physics.state()
            sensors[t, i] = physics.data.sensordata
            obs.append(_flat(step.observation))
            for name, reward in rewards.items():
                paid[name][t, i] = reward(physics)
            assert not step.last() or t == steps - 1
    flat = np.array(obs).reshape(n, steps, -1).swapaxes(0, 1)
    return Record(starts, actions, states, flat, sensors, paid, np.array(first))


def assert_parity(domain: Domain, known: Record, threads: int) -> None:
    """States and sensors are identical, observations and rewards agree to rounding."""
    env = BatchedEnv(domain, len(known.starts), threads)
    sensors = env._batch.bind("sensordata")
    tasks = domain.tasks("all", domain.task_names, {})
    assert {task.name for task in tasks} == set(known.rewards)
    close_in_single_precision(env.reset(known.starts), known.first_obs)
    for t, action in enumerate(known.actions):
        obs = env.step(action)
        assert np.array_equal(env.physics, known.states[t])
        assert np.array_equal(sensors, known.sensors[t])
        close_in_single_precision(obs, known.obs[t])
        for task in tasks:
            reward = domain.reward(task, env.reached(), action)
            np.testing.assert_allclose(reward, known.rewards[task.name][t], rtol=0, atol=1e-12)


def assert_relabelled(domain: Domain, known: Record) -> None:
    """The stored states and actions give the rewards, and those say something."""
    physics, action = (x.reshape(-1, x.shape[-1]) for x in (known.states, known.actions))
    for task in domain.tasks("all", domain.task_names, {}):
        expected = known.rewards[task.name].ravel()
        assert len(np.unique(expected)) > 100, task
        relabelled = domain.relabel(task, physics, action)
        np.testing.assert_allclose(relabelled, expected, rtol=0, atol=1e-12)


def close_in_single_precision(actual: Array, wanted: Array) -> None:
    """Half a unit in the last place apart."""
    np.testing.assert_allclose(actual, wanted, rtol=2**-24, atol=1e-12)


def binary(model: mujoco.MjModel) -> Array:
    """A model as MuJoCo saves it."""
    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer


def _flat(observation: Mapping[str, Array]) -> Array:
    return np.concatenate([np.ravel(value) for value in observation.values()])
