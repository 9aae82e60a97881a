"""Zero-shot inference: closed forms."""

import math

import numpy as np
import pytest
import torch

from bfmpipe.agents import fb
from bfmpipe.inference import Inference, infer
from bfmpipe.inference.reward import inverse_covariance
from bfmpipe.types import UserError
from tests.inference.models import Fitted, Identity

EXPECTATION = Inference(weights="expectation")
LEAST_SQUARES = Inference(weights="least-squares")
SOFTMAX = Inference(weights="expectation", reward_weighting="softmax")
HOW = {
    f"{weights}-{weighting}{'-centred' * centred}": Inference(
        weights=weights, reward_weighting=weighting, centred=centred
    )
    for weights in ("expectation", "least-squares")
    for weighting in ("uniform", "softmax")
    for centred in (False, True)
}
FITS = [how for how in HOW.values() if how.weights == "least-squares"]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = fb.Config(z_dim=5, hidden_dim=8, backward_hidden_dim=16, architecture="concatenated")
    return fb.Model(config, obs_dim=4, action_dim=2).double()


@pytest.mark.parametrize("how", FITS)
def test_a_reward_in_the_span_of_phi_comes_back_from_every_fit(model, generator, how):
    obs = torch.randn(200, 4, generator=generator, dtype=torch.float64)
    w = torch.tensor([0.3, -0.2, 0.0, 0.1, 0.5], dtype=torch.float64)
    # the softmax gives the worst of the 200 a share of 1e-17: its square root enters the precision
    found = infer(model, obs, model.phi(obs) @ w, how)
    torch.testing.assert_close(found.w, w, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("how", [how for how in FITS if how.centred])
def test_a_centred_fit_passes_over_a_constant_in_the_reward(model, generator, how):
    obs = torch.randn(200, 4, generator=generator, dtype=torch.float64)
    w = torch.tensor([0.3, -0.2, 0.0, 0.1, 0.5], dtype=torch.float64)
    reward = model.phi(obs) @ w - 7
    torch.testing.assert_close(infer(model, obs, reward, how).w, w, rtol=1e-6, atol=1e-6)
    plain = infer(model, obs, reward, how.model_copy(update={"centred": False})).w
    assert not torch.allclose(plain, w, atol=0.1)


def test_the_method_of_the_model_is_the_default(generator):
    obs = torch.randn(50, 4, generator=generator)
    reward = torch.rand(50, generator=generator)
    for model, how in ((Identity(4), EXPECTATION), (Fitted(4), LEAST_SQUARES)):
        assert torch.equal(
            infer(model, obs, reward, Inference()).w, infer(model, obs, reward, how).w
        )
        assert torch.equal(  # and what is set wins
            infer(Fitted(4), obs, reward, how).w, infer(Identity(4), obs, reward, how).w
        )


def test_the_default_of_fb_is_the_plain_product_to_the_last_bit(generator):
    torch.manual_seed(0)
    model = fb.Model(fb.Config(z_dim=7, hidden_dim=8, backward_hidden_dim=16), 4, 2)
    obs = torch.randn(333, 4, generator=generator)
    reward = torch.rand(333, generator=generator, dtype=torch.float64)
    plain = model.phi(obs).mT @ reward.float() / 333
    assert torch.equal(infer(model, obs, reward, Inference()).w, plain)


@pytest.mark.parametrize("name", HOW)
def test_every_variant_equals_its_plain_form(generator, name):
    """By loops and np.linalg.lstsq, on correlated features of which one is nearly constant."""
    how = HOW[name].model_copy(update={"inverse_temperature": 3.0})
    mixing = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    obs = torch.randn(60, 4, generator=generator, dtype=torch.float64) @ mixing
    obs[:, 3] = 2 + 0.1 * obs[:, 3]
    reward = torch.rand(60, generator=generator, dtype=torch.float64)
    w = infer(Identity(4), obs, reward, how).w.numpy()

    phi, r = obs.numpy(), reward.numpy()
    share = np.full(60, 1 / 60)
    softmax = np.exp(3 * r) / sum(np.exp(3 * x) for x in r)

    def moments(p):
        if not how.centred:
            return phi, r
        return phi - sum(p[i] * phi[i] for i in range(60)), r - sum(p * r)

    p = softmax if how.reward_weighting == "softmax" else share
    x, y = moments(p)
    if how.weights == "least-squares":
        root = np.sqrt(p)
        expected = np.linalg.lstsq(root[:, None] * x, root * y, rcond=None)[0]
    else:
        expected = sum(p[i] * y[i] * x[i] for i in range(60))
        x, y = moments(share)
        length = np.linalg.norm(sum(y[i] * x[i] for i in range(60)) / 60)
        expected *= length / np.linalg.norm(expected)
    np.testing.assert_allclose(w, expected, rtol=1e-9)


def test_softmax_of_three_samples_by_hand():
    """softmax(10 r) of r = 0, 0.1, 0.1 log 6 + 0.1 is 1, e, 6 e over 1 + 7 e."""
    obs = torch.tensor([[5.0, 5.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    r = 0.1 * (math.log(6) + 1)
    reward = torch.tensor([0.0, 0.1, r], dtype=torch.float64)
    direction = torch.tensor([0.1, 6 * r], dtype=torch.float64)
    length = math.hypot(0.1, r) / 3  # of the unweighted w = (0.1, r) / 3
    w, z = infer(Identity(2), obs, reward, SOFTMAX)
    torch.testing.assert_close(w, length * direction / direction.norm())
    torch.testing.assert_close(z, math.sqrt(2) * direction / direction.norm())


@pytest.mark.parametrize("centred", [False, True])
def test_softmax_changes_nothing_of_rewards_that_are_0_or_1(generator, centred):
    obs = torch.randn(500, 4, generator=generator, dtype=torch.float64)
    reward = (torch.arange(500) < 7).double()  # a rare goal
    plain = infer(Identity(4), obs, reward, Inference(centred=centred)).w
    # 10: what is left of the others is 493 / 7 e^-10; 300: far below float32's smallest number
    for temperature, rtol in ((10.0, 1e-2), (300.0, 1e-9)):
        how = Inference(
            reward_weighting="softmax", inverse_temperature=temperature, centred=centred
        )
        found = infer(Identity(4), obs, reward, how).w
        torch.testing.assert_close(found, plain, rtol=rtol, atol=0)


def test_a_temperature_near_zero_is_uniform(generator):
    obs = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    reward = torch.rand(50, generator=generator, dtype=torch.float64)
    for weights in ("expectation", "least-squares"):
        cold = Inference(weights=weights, reward_weighting="softmax", inverse_temperature=1e-9)
        found, plain = (
            infer(Identity(4), obs, reward, how).w for how in (cold, HOW[f"{weights}-uniform"])
        )
        torch.testing.assert_close(found, plain)


def test_large_rewards_do_not_overflow_the_softmax(generator):
    obs = torch.randn(50, 4, generator=generator)
    reward = 1e4 * torch.rand(50, generator=generator)
    w, z = infer(Identity(4), obs, reward, SOFTMAX)
    best = obs[reward.argmax()]
    torch.testing.assert_close(z, 2 * best / best.norm())
    torch.testing.assert_close(w.norm(), (obs.mT @ reward / 50).norm())


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
    shortest = torch.tensor([0.5, -1.5, 0.5, -1.5], dtype=torch.float64)
    torch.testing.assert_close(w, shortest)


@pytest.mark.parametrize("how", FITS)
def test_rounding_of_dependent_features_is_not_fitted(generator, how):
    """float32 features that depend on each other do so only up to the rounding of a network."""
    obs = torch.randn(5000, 6, generator=generator)
    rounding = 2e-7 * torch.randn(5000, generator=generator)
    obs[:, 5] = obs[:, 0] / 3 - obs[:, 1] * 0.7 + rounding
    exact = obs.double() @ torch.tensor([0.1, -0.3, 0.2, 0.0, 0.1, 0.2], dtype=torch.float64)
    reward = exact + 0.1 * torch.rand(5000, generator=generator)  # noise that could be fitted
    w = infer(Identity(6), obs, reward, how).w
    assert w.norm() < 1
    dependence = torch.tensor([1 / 3, -0.7, 0, 0, 0, -1])
    assert abs(w @ dependence) < 1e-3  # the shortest: nothing of what makes no difference


@pytest.mark.parametrize("how", FITS)
def test_fewer_samples_than_features_give_the_shortest_fit(generator, how):
    obs = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    reward = torch.rand(3, generator=generator, dtype=torch.float64)
    w = infer(Identity(5), obs, reward, how).w
    x, r = (obs - obs[0], reward - reward[0]) if how.centred else (obs, reward)
    torch.testing.assert_close(w, torch.linalg.pinv(x) @ r)


def test_the_pseudo_inverse_inverts_a_regular_covariance(generator):
    x = torch.randn(100, 5, generator=generator) * torch.logspace(-2, 2, 5)  # 1e8 in the covariance
    q = torch.rand(100, generator=generator, dtype=torch.float64)
    C = sum(q[i] * torch.outer(x[i].double(), x[i].double()) for i in range(100)) / 100
    torch.testing.assert_close(
        inverse_covariance(x, q) @ C, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_z_lies_on_the_sphere_in_the_direction_of_w(generator, how, scale):
    obs = torch.randn(40, 6, generator=generator)
    how = how.model_copy(update={"inverse_temperature": 10 / scale})
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


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_rewards_that_are_all_the_same_are_refused_where_nothing_is_left(generator, how):
    obs = torch.randn(12, 3, generator=generator)
    if how.centred:
        with pytest.raises(UserError, match=r"all 12 rewards .* are the same, and infer\.centred"):
            infer(Identity(3), obs, torch.full((12,), 0.1), how)
    else:
        assert infer(Identity(3), obs, torch.full((12,), 0.1), how).w.any()


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_no_sample_and_no_number_are_refused(how):
    with pytest.raises(UserError, match="hold no state to infer a task from; give at least one"):
        infer(Identity(3), torch.ones(0, 3), torch.ones(0), how)
    for bad in (math.nan, math.inf):
        with pytest.raises(UserError, match="not a finite number"):
            infer(Identity(3), torch.ones(2, 3), torch.tensor([1.0, bad]), how)


def test_features_that_cancel_are_refused():
    obs = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    with pytest.raises(UserError, match=r"features do not tell the rewards .* collect data"):
        infer(Identity(2), obs, torch.ones(2), EXPECTATION)


@pytest.mark.parametrize("weights", ["expectation", "least-squares"])
def test_a_softmax_of_a_single_sample_leaves_nothing_to_centre(generator, weights):
    obs, reward = torch.randn(20, 3, generator=generator), 1e6 * torch.rand(20, generator=generator)
    how = Inference(weights=weights, reward_weighting="softmax", centred=True)
    with pytest.raises(UserError, match=r"cannot be inferred; lower infer\.inverse_temperature"):
        infer(Identity(3), obs, reward, how)


@pytest.mark.parametrize(
    "wrong",
    [{"samples": 0}, {"inverse_temperature": 0.0}, {"inverse_temperature": -1.0}, {"centred": 1}],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Inference(**wrong)
