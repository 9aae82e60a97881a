"""The divergence alarm of training, as the trainer wrote it into the table of losses."""

import numpy as np

from bfmpipe.report.rows import Columns


def diverged_at(losses: Columns) -> int | None:
    """The first update at which the alarm rang, if it did."""
    rang = losses["alarm"]
    return int(losses["update"][np.argmax(rang)]) if rang.any() else None
