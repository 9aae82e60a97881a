"""What every layer may use: array types, and the error for bad input."""

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]


class UserError(Exception):
    """Bad input, said in one sentence: what is wrong, where, and what would be valid.

    The command line and the Snakefile print the message alone, without a traceback.
    """
