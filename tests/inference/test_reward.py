"""Zero-shot inference: closed forms."""

import math

import pytest
import torch
from torch import Tensor

from bfmpipe.agents import AgentConfig, Model, fb
from bfmpipe.inference import Inference, infer
from bfmpipe.types import UserError

EXPECTATION = Inference(weights="expectation")
LEAST_SQUARES = Inference(weights="least-squares")


class Identity(Model):
    """A model whose features are its observations: every feature matrix can be made up."""

    def __init__(self, d: int) -> None:
        super().__init__(
            AgentConfig(z_dim=d, discount=0.9, stride=1, batch=1), obs_dim=d, action_dim=1
        )

    def phi(self, obs: Tensor) -> Tensor:
        return obs

    def psi(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        return obs[None]

    def actor(self, obs: Tensor, z: Tensor) -> Tensor:
        return torch.zeros(len(obs), 1)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = fb.Config(z_dim=5, hidden_dim=8, backward_hidden_dim=16, architecture="concatenated")
    return fb.Model(config, obs_dim=4, action_dim=2).double()


def test_a_reward_in_the_span_of_phi_comes_back_from_least_squares(model, generator):
    obs = torch.randn(200, 4, generator=generator, dtype=torch.float64)
    w = torch.tensor([0.3, -2.0, 0.0, 1.0, 5.0], dtype=torch.float64)
    found = infer(model, obs, model.phi(obs) @ w, LEAST_SQUARES)
    torch.testing.assert_close(found.w, w, rtol=1e-8, atol=1e-8)


def test_the_expectation_is_the_mean_of_reward_times_feature(generator):
    obs = torch.randn(7, 3, generator=generator)
    reward = torch.randn(7, generator=generator)
    by_hand = sum(reward[i] * obs[i] for i in range(7)) / 7
    torch.testing.assert_close(infer(Identity(3), obs, reward, EXPECTATION).w, by_hand)


def test_the_two_agree_on_orthonormal_features(generator):
    q, _ = torch.linalg.qr(torch.randn(50, 4, generator=generator, dtype=torch.float64))
    obs = q * math.sqrt(50)  # E[phi phi^T] = 1
    reward = torch.randn(50, generator=generator, dtype=torch.float64)
    one, two = (infer(Identity(4), obs, reward, how) for how in (EXPECTATION, LEAST_SQUARES))
    torch.testing.assert_close(one.w, two.w)
    torch.testing.assert_close(one.z, two.z)


def test_the_two_differ_on_other_features(generator):
    obs = torch.randn(50, 4, generator=generator) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    reward = obs @ torch.ones(4)
    assert not torch.allclose(
        infer(Identity(4), obs, reward, EXPECTATION).z,
        infer(Identity(4), obs, reward, LEAST_SQUARES).z,
        atol=0.1,
    )


def test_least_squares_fits_where_features_repeat(generator):
    half = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    obs = torch.cat([half, half], dim=1)  # rank 2 of 4
    reward = half @ torch.tensor([1.0, -3.0], dtype=torch.float64)
    w = infer(Identity(4), obs, reward, LEAST_SQUARES).w
    torch.testing.assert_close(obs @ w, reward)


@pytest.mark.parametrize("how", [EXPECTATION, LEAST_SQUARES])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_z_lies_on_the_sphere_in_the_direction_of_w(generator, how, scale):
    obs = torch.randn(40, 6, generator=generator)
    w, z = infer(Identity(6), obs, scale * torch.rand(40, generator=generator), how)
    torch.testing.assert_close(z.norm(), torch.tensor(math.sqrt(6)))
    torch.testing.assert_close(z / z.norm(), w / w.norm())


def test_twice_the_reward_is_twice_the_weights_and_the_same_latent(generator):
    obs = torch.randn(40, 6, generator=generator)
    reward = torch.rand(40, generator=generator)
    one = infer(Identity(6), obs, reward, EXPECTATION)
    two = infer(Identity(6), obs, 2 * reward, EXPECTATION)
    torch.testing.assert_close(two.w, 2 * one.w)
    torch.testing.assert_close(two.z, one.z)


def test_float64_rewards_of_a_float32_model_give_float32_weights(generator):
    obs = torch.randn(10, 3, generator=generator)
    reward = torch.rand(10, generator=generator, dtype=torch.float64)
    assert infer(Identity(3), obs, reward, LEAST_SQUARES).w.dtype == torch.float32


def test_a_reward_that_is_zero_everywhere_is_refused(generator):
    obs = torch.randn(12, 3, generator=generator)
    with pytest.raises(UserError, match="all 12 rewards in the inference data are zero"):
        infer(Identity(3), obs, torch.zeros(12), EXPECTATION)
    one = torch.zeros(12)
    one[3] = 1e-3  # a single one is enough
    torch.testing.assert_close(infer(Identity(3), obs, one, EXPECTATION).w, obs[3] * 1e-3 / 12)
