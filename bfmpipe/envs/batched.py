"""Many simulations of one domain, stepped as one batch on a thread pool."""

import os
from typing import Any

import mujoco
import numpy as np
from mujoco.batch import Batch

from bfmpipe.envs.domain import Domain
from bfmpipe.envs.tasks import Physics
from bfmpipe.types import Array, UserError

# Position- and velocity-dependent fields then describe the state after the step, as dm_control's.
_STAGE = int(mujoco.mjtStage.mjSTAGE_VEL)
# Warnings from here on say that MuJoCo met a NaN or a huge value and reset the simulation.
_UNSTABLE = slice(int(mujoco.mjtWarning.mjWARN_BADQPOS), None)


class UnstableError(UserError):
    """A simulation met a NaN or a huge value; `simulation` says which."""

    def __init__(self, domain: Domain, simulation: int) -> None:
        self.simulation = simulation
        super().__init__(
            f"{domain.name}: simulation {simulation} became unstable; "
            "actions must be finite and within [-1, 1]"
        )


class BatchedEnv:
    """Copies of a domain; bit-identical to stepping them one by one, at any thread count.

    Args:
        domain: the domain.
        num_envs: number of simulations.
        threads: size of the thread pool.
    """

    def __init__(self, domain: Domain, num_envs: int, threads: int) -> None:
        if num_envs < 1:
            raise UserError(
                f"{domain.name}: {num_envs} environments asked for, at least 1 is needed"
            )
        self.domain = domain
        self.num_envs = num_envs
        self._batch = Batch(domain.model, num_envs, min(threads, num_envs), persistent=True)
        self._fields = {n: self._batch.bind(n) for n in domain.fields + domain.observed_fields}
        self._ctrl = self._batch.bind("ctrl")
        # A row is time, qpos, qvel, act, warm start, controls, applied forces, and which equality
        # constraints hold.
        self._fresh = self._batch.state[:1].copy()
        self._physics = self._batch.state[:, 1 : 1 + domain.physics_dim]

    @property
    def physics(self) -> Array:
        """Physics states (num_envs, physics_dim), float64, a copy."""
        return self._physics.copy()

    def reset(self, physics: Array) -> Array:
        """Put every simulation into a physics state (num_envs, physics_dim); observations there.

        Everything else of the simulation state (time, warm start, controls) is as in a new
        simulation, so what follows depends on `physics` and the actions alone.
        """
        self._batch.state[:] = self._fresh
        self._batch.warning[:] = 0
        self._physics[:] = physics
        self._batch.forward(stage=int(self.domain.reset_stage))
        return self.observe()

    def state(self) -> Array:
        """All that the next step depends on, beside its action: (num_envs, n), float64, a copy."""
        return self._batch.state.copy()

    def load_state(self, state: Array) -> None:
        """Go on where `state` was taken, of as many simulations of the same domain.

        Only a step brings observations again: some sensors speak of forces on the way to a state.
        """
        self._batch.state[:] = state

    def step(self, action: Array) -> Array:
        """Apply `action` (num_envs, action_dim), in [-1, 1], for one control step; observations.

        Raises:
            UnstableError: where a simulation became unstable, which MuJoCo itself passes over.
        """
        self._ctrl[:] = action
        self._batch.step(nstep=self.domain.config.physics_steps, stage=_STAGE)
        warnings = self._batch.warning[:, _UNSTABLE, 1]
        if warnings.any():
            bad = int(np.flatnonzero(warnings.any(axis=1))[0])
            raise UnstableError(self.domain, bad)
        return self.observe()

    def observe(self) -> Array:
        """Observations (num_envs, obs_dim), float32, a copy."""
        return self.domain.observe(self._fields)

    def reached(self) -> Physics[Any]:
        """What rewards of the states just reached are made of; of no use after the next step."""
        return self.domain.Physics(self.domain, self._fields)


def threads() -> int:
    """Threads this process may use: OMP_NUM_THREADS, as torch reads it, or one a core."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) else len(os.sched_getaffinity(0))
