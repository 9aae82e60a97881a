"""Zero-shot inference of reaching a goal g.

Its reward is the density of g against that of the data rho: zero but near g, of mean 1 over rho,

    r_g(s) = delta_g(ds) / rho(ds)        E_rho[r_g phi] = phi(g)

With this reward the equations of `inference.reward` need no rewards of samples any more:

    expectation     w = phi(g)            for FB psi^T w = F^T B(g), the successor measure's density
    least-squares   w = C^+ phi(g)        C = E_rho[phi phi^T], over a sample of the data

and z = project_z(w). w is in units of r_g: psi^T w is the discounted number of steps spent at g,
times how rare g is in the data. Centred, E_rho[phi] is taken off phi(g) and the features of C.

Touati & Ollivier 2021, section 4; Park, Kreiman & Levine 2024.
"""

import torch
from torch import Tensor

from bfmpipe.agents import Model
from bfmpipe.inference.reward import Inference, Latent, inverse_covariance
from bfmpipe.networks import project_z
from bfmpipe.types import UserError


def infer_goal(
    model: Model, goal_obs: Tensor, config: Inference, sample: Tensor | None = None
) -> Latent:
    """w and z (G, d) of reaching each of G goals.

    Args:
        model: a frozen BFM.
        goal_obs: (G, obs_dim), the goals.
        config: how; there are no rewards to weight, so `reward_weighting` changes nothing.
        sample: (n, obs_dim), states of the data; see `needs_sample`.

    Raises:
        UserError: where a sample is needed and there is none.
    """
    w = goal_weights(model, goal_obs, config, sample)
    return Latent(w, project_z(w))


def needs_sample(model: Model, config: Inference) -> bool:
    """Whether moments of the data enter w."""
    return config.centred or config.of(model) == "least-squares"


@torch.no_grad()
def goal_weights(
    model: Model, goal_obs: Tensor, config: Inference, sample: Tensor | None
) -> Tensor:
    """w (G, d) of `infer_goal`."""
    features = model.phi(goal_obs)
    if not needs_sample(model, config):
        return features
    if sample is None or not len(sample):
        what = "centred features" if config.centred else "least squares"
        raise UserError(f"a goal's latent by {what} needs states of the data set; give `data`")
    x, goal = model.phi(sample).double(), features.double()
    if config.centred:
        mean = x.mean(0)
        x, goal = x - mean, goal - mean
    if config.of(model) == "least-squares":
        goal = goal @ inverse_covariance(x)
    return goal.to(features)
