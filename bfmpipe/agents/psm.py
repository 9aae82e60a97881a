"""Proto successor measures (Agarwal, Sikchi, Stone & Zhang 2024, arXiv 2411.19418).

The successor measures of all policies lie in one affine space. A basis of it is learnt on a
codebook of policies that are pseudo-random but fixed. On n transitions (s, a, s'), with a code c
and a latent z in each row, target networks marked ':

    L(psi, y) = sum_p 1/2 mean_{i != j} (psi_p,i^T phi(s'_j) - gamma y_ij)^2
                - sum_p mean_i psi_p,i^T phi(s'_i)

    (i)   psi_PSM and phi   L(psi_PSM(s, a, c), psi_PSM'(s'_i, pi_c(s'_i), c_i)^T phi'(s'_j))
                            + ortho_coef L_orth
          L_orth            1/2 mean_{i != j} (phi(s'_i)^T phi(s'_j))^2 - mean_i |phi(s'_i)|^2
    (ii)  psi_SF            L(psi_SF(s, a, z), psi_SF'(s'_i, pi(s'_i, z_i), z_i)^T phi(s'_j))
                            with phi frozen
    (iii) pi                - mean_i reduce_p psi_SF,p(s_i, pi(s_i, z_i), z_i)^T z_i

    phi      feature_map, on the sphere      psi_PSM  proto_map, for training alone
    psi_SF   forward_map                     heads p, in targets their mean
    pi_c     codebook_actions                pi       actor, with clipped noise
    c        code, code_bits digits 0 or 1   z        latent, |z| = sqrt(d)

The value of a reward r under pi(., z) is psi_SF(s, a, z)^T E_rho[r phi], rho the data's
distribution. The paper writes a measure as Phi(s, a, s+)^T w + b(s, a, s+) with one w a policy. For
continuous control the published algorithm has psi_PSM(s, a, c)^T phi(s+) in its place, without a
bias of its own, and so has this one. The published codebook hashes the number of a row, to actions
in [-2, 0); a policy depends on the state and nothing else, so here it hashes the observation, to
[-1, 1).
"""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bfmpipe.agents import successor
from bfmpipe.agents.base import Batch, Loss, Phase, Tensors
from bfmpipe.agents.losses import measure_loss, orthonormality_loss
from bfmpipe.networks import BackwardMap, ConditionedMap


class Config(successor.Config):
    """The published settings on DMC; the presets state what differs."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "walker": {},
        "cheetah": {},
        "quadruped": {},
        "point_mass_maze": {"discount": 0.99},
        "small": {**successor.SMALL, "z_dim": 50},
        "small-point_mass_maze": {
            **successor.SMALL_MAZE,
            "feature_hidden_dim": 128,
            "feature_obs": (0, 1),
            "feature_octaves": 3,
        },
    }

    z_dim: int = Field(128, ge=2)
    actor_pessimism: float = Field(0.5, ge=0)
    code_bits: int = Field(16, ge=1, le=32)
    """The codebook has 2^code_bits policies."""
    feature_hidden_dim: int = Field(256, ge=1)
    feature_hidden_layers: int = Field(1, ge=0)
    feature_obs: successor.Entries | None = None
    """Entries of the observation that phi reads; all of them by default."""
    feature_octaves: int = Field(0, ge=0)
    ortho_coef: float = Field(1.0, ge=0)


class Model(successor.Model):
    """psi_SF, phi and pi."""

    config: Config

    def __init__(self, config: Config, obs_dim: int, action_dim: int) -> None:
        super().__init__(config, obs_dim, action_dim)
        c = config
        self._check_entries("feature_obs", c.feature_obs or ())
        self.feature_map = BackwardMap(
            (obs_dim if c.feature_obs is None else len(c.feature_obs))
            + self._fourier_features(c.feature_octaves),
            c.feature_hidden_dim,
            c.feature_hidden_layers,
            c.z_dim,
        )

    def proto_network(self) -> ConditionedMap:
        """A network to be psi_PSM: the forward map's with a code in place of the latent."""
        c = self.config
        return ConditionedMap(
            c.heads,
            self.obs_dim + self._fourier_features(c.forward_octaves),
            c.code_bits,
            self.action_dim,
            c.hidden_dim,
            c.z_dim,
            architecture=c.architecture,
            trunk_layers=c.trunk_layers,
        )

    def feature_input(self, obs: Tensor) -> Tensor:
        """What phi's network reads of raw observations."""
        return self.encode(obs, self.config.feature_octaves, self.config.feature_obs)

    def phi(self, obs: Tensor) -> Tensor:
        """phi(s), (n, d)."""
        return self.feature_map(self.feature_input(obs))


class Agent(successor.Agent):
    """PSM in training.

    The codebook's policies act, as the data do, in transitions of `stride` steps.
    """

    config: Config
    model: Model
    watched_loss = "successor_loss"

    def __init__(self, config: Config, obs_dim: int, action_dim: int) -> None:
        super().__init__(config, Model(config, obs_dim, action_dim))
        c = config
        self.proto_map = self.model.proto_network()
        self.target_proto_map = self.target_copy(self.proto_map)
        self.target_feature_map = self.target_copy(self.model.feature_map)
        self.targets = {
            **self.targets,
            "target_proto_map": ("proto_map", c.target_tau),
            "target_feature_map": ("model.feature_map", c.target_tau),
        }
        self.phases = (
            Phase("proto", ("proto_map", "model.feature_map"), c.learning_rate),
            Phase("successor", ("model.forward_map",), c.learning_rate),
            self.actor_phase,
        )

    def draw(self, batch: Batch, generator: torch.Generator, due: Collection[str]) -> Tensors:
        """Those of the latents; codes, as bits (n, code_bits), and their actions in next states."""
        bits = self.config.code_bits
        code = torch.randint(
            2**bits, (len(batch.obs),), generator=generator, device=batch.obs.device
        )
        return {
            **super().draw(batch, generator, due),
            "code": code_input(code, bits).to(batch.obs.dtype),
            "code_action": codebook_actions(batch.next_obs, code, batch.action.shape[-1]).to(
                batch.action.dtype
            ),
        }

    def forward(self, phase: str, batch: Batch, draws: Tensors, shared: Tensors) -> Loss:
        """The losses of the module's docstring: (i) proto, (ii) successor, (iii) actor."""
        if phase == "proto":
            return self.proto_loss(batch, draws)
        if phase == "successor":
            return self.successor_loss(batch, draws)
        return self.actor_loss(batch, draws, shared)

    def proto_loss(self, batch: Batch, draws: Tensors) -> Loss:
        """(i): the codebook's successor measures in one basis."""
        model, code = self.model, draws["code"]
        goal = model.feature_input(batch.next_obs)
        phi = model.feature_map(goal)
        with torch.no_grad():
            next_obs = model.psi_obs(batch.next_obs)
            target_psi = self.target_proto_map(next_obs, code, draws["code_action"])
            target_phi = self.target_feature_map(goal)
        psi = self.proto_map(model.psi_obs(batch.obs), code, batch.action)
        proto_loss = measure_loss(psi, phi, target_psi.mean(0), target_phi, self.discount)
        ortho_loss = orthonormality_loss(phi)
        metrics = {
            "proto_loss": proto_loss.detach(),
            "ortho_loss": ortho_loss.detach(),
            "proto_norm": psi.detach().norm(dim=-1).mean(),
        }
        return Loss(proto_loss + self.config.ortho_coef * ortho_loss, metrics)

    def successor_loss(self, batch: Batch, draws: Tensors) -> Loss:
        """(ii): the actor's successor measures in that basis; leaves the latents to the actor."""
        model = self.model
        with torch.no_grad():
            phi = model.phi(batch.next_obs)
            z = self.latents(phi, draws)
            target = self.target_psi(batch, z, self.next_action(batch, z, draws)).mean(0)
        psi = model.forward_map(model.psi_obs(batch.obs), z, batch.action)
        loss = measure_loss(psi, phi, target, phi, self.discount)
        metrics = {"successor_loss": loss.detach(), "psi_norm": psi.detach().norm(dim=-1).mean()}
        return Loss(loss, metrics, {"z": z})


def code_input(code: Tensor, bits: int) -> Tensor:
    """Codes (n,) as psi_PSM reads them: their binary digits, the lowest first, (n, bits) int64."""
    return (code[:, None] >> torch.arange(bits, device=code.device)) & 1


def codebook_actions(obs: Tensor, code: Tensor, action_dim: int) -> Tensor:
    """pi_c(s), (n, action_dim) float32: uniform in [-1, 1), a function of c and of s's content.

    With f the finaliser of splitmix64 (Steele, Lea & Flood 2014), and integers modulo 2^64,

        h(s) = sum_k f(2^32 (k + 1) + the bits of entry k as float32; -0 is 0)
        x_j  = f(h(s) + (c action_dim + j + 1) 0x9E3779B97F4A7C15)
        a_j  = floor(x_j / 2^40) / 2^23 - 1

    so the codebook's actions in a state are splitmix64's numbers from the seed h(s). Integers and
    exact floats only: the same on every machine.

    Args:
        obs: raw observations (n, obs_dim).
        code: (n,) int64.
        action_dim: numbers an action has.
    """
    device = obs.device
    entries = (obs.to(torch.float32) + 0.0).view(torch.int32).long() & 0xFFFFFFFF
    places = torch.arange(1, obs.shape[-1] + 1, device=device) << 32
    seed = _finalise(entries + places).sum(-1)
    number = code[:, None] * action_dim + torch.arange(1, action_dim + 1, device=device)
    random = _finalise(seed[:, None] + number * _as_signed(0x9E3779B97F4A7C15))
    return _shift(random, 40).to(torch.float32) / 2**23 - 1


def _finalise(x: Tensor) -> Tensor:
    """splitmix64's bijection of 64-bit integers, here int64."""
    x = (x ^ _shift(x, 30)) * _as_signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _as_signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, places: int) -> Tensor:
    """x >> places of unsigned numbers."""
    return (x >> places) & (2 ** (64 - places) - 1)


def _as_signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x
