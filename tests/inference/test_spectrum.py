"""The effective rank of spectra by hand."""

import math

import pytest
import torch

from bfmpipe.inference.spectrum import effective_rank


@pytest.mark.parametrize(
    ("eigenvalues", "rank"),
    [([1, 1, 1, 1], 4), ([5, 0, 0], 1), ([2, 2, 0], 2), ([3, -1e-9], 1), ([3, 1], 4 / 3**0.75)],
)
def test_effective_rank_counts_equal_directions(eigenvalues, rank):
    assert effective_rank(torch.tensor(eigenvalues, dtype=torch.float64)) == pytest.approx(rank)


def test_no_features_have_no_rank():
    assert math.isnan(effective_rank(torch.zeros(3)))
