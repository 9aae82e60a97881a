import numpy as np

from bfmpipe.report.alarm import diverged_at


def test_first_row_that_rang():
    update = np.array([100, 200, 300])
    assert diverged_at({"update": update, "alarm": np.array([False, True, True])}) == 200
    assert diverged_at({"update": update, "alarm": np.array([False] * 3)}) is None
