"""How many directions a model's features use."""

import torch
from torch import Tensor


def effective_rank(eigenvalues: Tensor) -> float:
    """exp of the entropy of the eigenvalues (d,) as shares of their sum, in [1, d].

    d where all are the same (Roy & Vetterli 2007). Rounding below 0 counts as 0; NaN where all are.
    """
    share = eigenvalues.double().clamp_min(0)
    return float(torch.special.entr(share / share.sum()).sum().exp())
