"""The divergence alarm of training, read from the table of losses.

The same rule as the trainer's, which warns while it trains; a test holds the two together.
"""

import numpy as np

from bfmpipe.report.rows import Columns


def diverged_at(losses: Columns, margin: float) -> int | None:
    """The first update where the loss has turned while Q still climbs, if there is one.

    fb_loss - min > margin (max - min) of all rows so far, and q above all rows before.
    """
    if not {"fb_loss", "q"} <= losses.keys():
        return None
    loss, q = losses["fb_loss"], losses["q"]
    low, high = np.minimum.accumulate(loss), np.maximum.accumulate(loss)
    turned = (loss - low > margin * (high - low)) & (high > low)
    climbs = np.append(False, q[1:] > np.maximum.accumulate(q)[:-1])
    rang = turned & climbs
    rang[:2] = False
    return int(losses["update"][np.argmax(rang)]) if rang.any() else None
