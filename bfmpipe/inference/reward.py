"""Zero-shot inference from rewards on a sample of states.

With features phi_i of n sampled states, their rewards r_i, and what a sample counts, q_i of mean 1:

    expectation     w = mean_i q_i r_i phi_i
    least-squares   w = argmin mean_i q_i (phi_i^T w - r_i)^2 = C^+ mean_i q_i r_i phi_i,
                    C = mean_i q_i phi_i phi_i^T; the shortest w where many are best

and z = project_z(w) = sqrt(d) w / |w|. Uniform weighting is q_i = 1. Then psi^T w is the value of r
for FB, by its definition, with the expectation, and for successor features of phi, if phi's span
holds r, with least squares. The two agree where the features are orthonormal; with the other one a
model's z may still be good, but psi^T w is not a value.

Centred, the means (with the weights q) are taken off rewards and features first: w stands for the
reward less its mean, and least squares fits r up to a constant.

Weighted by softmax, q_i = n softmax(inverse_temperature r)_i: the best of the sampled states
decide. Least squares remains a fit of r, in its units. The expectation becomes that of the reward
q r, which for a rare goal is longer by one over the goal's share of the sample, and psi^T w with
it. So only its direction is kept, and w is as long as without the softmax, which is exact for
rewards of 0 and 1.

Touati & Ollivier 2021, section 4; Touati, Rapin & Ollivier 2023, section 3; Park, Kreiman & Levine
2024 (least squares); Tirinzoni et al. 2025 (the softmax, of inverse temperature 10, of which they
use the direction, z, alone).
"""

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from bfmpipe.agents import Model
from bfmpipe.config import Config
from bfmpipe.networks import project_z
from bfmpipe.types import UserError


class Inference(Config):
    """Settings of zero-shot inference."""

    samples: int = Field(50_000, ge=1)
    """States drawn from the data set; all of it if it is smaller."""
    weights: Literal["model", "expectation", "least-squares"] = "model"
    """How w is found; "model" is what the model's method defines."""
    reward_weighting: Literal["uniform", "softmax"] = "uniform"
    """What a sample counts: all the same, or softmax(inverse_temperature r) over the samples."""
    inverse_temperature: float = Field(10.0, gt=0)
    """Factor on the rewards in the softmax; the larger, the fewer samples decide."""
    centred: bool = False
    """Take the means off features and rewards."""

    def of(self, model: Model) -> Literal["expectation", "least-squares"]:
        """How w of this model is found."""
        return model.inference_weights if self.weights == "model" else self.weights


class Latent(NamedTuple):
    """Weights w (..., d), in reward units, and the latent z (..., d), on the sphere."""

    w: Tensor
    z: Tensor


@torch.no_grad()
def infer(model: Model, obs: Tensor, reward: Tensor, config: Inference) -> Latent:
    """Infer w and z of one task.

    Args:
        model: a frozen BFM.
        obs: (n, obs_dim), states that were reached.
        reward: (n,), the task's reward on reaching them.
        config: how.

    Raises:
        UserError: where there is no sample, a reward is no number, or the rewards say nothing about
            the task: all of them are zero or, centred, the same.
    """
    reward = reward.double()
    _check(reward, config)
    features = model.phi(obs)
    n = len(features)
    uniform = torch.ones_like(reward)
    softmax = config.reward_weighting == "softmax"
    q = n * torch.softmax(config.inverse_temperature * reward, 0) if softmax else uniform
    if config.of(model) == "least-squares":
        x = features.double()
        r = reward.to(x)
        q = q.to(x)
        if config.centred:
            x, r = x - (q[:, None] * x).mean(0), r - (q * r).mean()
        w = (inverse_covariance(x, q) @ (x.mT @ (q * r) / n)).to(features)
    else:
        w = _expectation(features, reward, uniform, config.centred)
        if softmax:
            direction = _expectation(features.double(), reward, q, config.centred)
            direction = torch.nn.functional.normalize(direction, dim=0, eps=1e-300)
            w = (w.norm() * direction).to(features)
    if not bool(w.any()):
        mend = "lower infer.inverse_temperature" if softmax else "collect data that covers the task"
        raise UserError(
            "the model's features do not tell the rewards of the inference data apart, so the task "
            f"cannot be inferred; {mend}"
        )
    return Latent(w, project_z(w))


def left_out(model: Model, obs: Tensor, reward: Tensor, w: Tensor, config: Inference) -> Tensor:
    """The constant by which a task's reward differs from what w stands for, (T,), float64.

    Least squares leaves the mean of its residual; a centred expectation that of the reward.

    Args:
        model: a frozen BFM.
        obs: (n, obs_dim), samples.
        reward: (T, n), of reaching them.
        w: (T, d), inferred by `infer`.
        config: with which.
    """
    mean = reward.double().mean(-1)
    if config.of(model) == "least-squares":
        return mean - w.double() @ model.phi(obs).double().mean(0)
    return mean if config.centred else torch.zeros_like(mean)


def _check(reward: Tensor, config: Inference) -> None:
    if not len(reward):
        raise UserError("the inference data hold no state to infer a task from; give at least one")
    if not bool(reward.isfinite().all()):
        raise UserError("a reward in the inference data is not a finite number; mend the task")
    same = reward[0] if config.centred else 0.0
    if not bool((reward != same).any()):
        what = "the same, and infer.centred takes their mean off" if config.centred else "zero"
        raise UserError(
            f"all {len(reward)} rewards in the inference data are {what}, so the task cannot be "
            "inferred; raise infer.samples, collect data that covers the task, or widen its reward"
        )


def _expectation(features: Tensor, reward: Tensor, q: Tensor, centred: bool) -> Tensor:
    """mean_i q_i r_i phi_i (d,) of features (n, d), and of rewards and q (n,), float64."""
    if centred:
        reward = reward - (q * reward).mean()
        features = features - (q.to(features)[:, None] * features).mean(0)
    return features.mT @ (q * reward).to(features) / len(features)


def inverse_covariance(features: Tensor, q: Tensor | None = None) -> Tensor:
    """C^+ (d, d), the pseudo-inverse of C = mean_i q_i phi_i phi_i^T, float64.

    Features may depend on each other, or nearly. Models compute them in float32, so what is below
    d eps of the largest singular value of the features is rounding, and taken as zero, as are its
    squares among C's eigenvalues; float64 holds those squares exactly enough.

    Args:
        features: (n, d).
        q: (n,), what each row counts; 1 if None.
    """
    x = features.double()
    weighted = x if q is None else q.to(x)[:, None] * x
    precision = x.shape[1] * torch.finfo(torch.float32).eps
    return torch.linalg.pinv(weighted.mT @ x / len(x), rtol=precision**2, hermitian=True)
