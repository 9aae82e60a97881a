"""Progress with rate and time left: a bar on a terminal, a line every ten seconds in a log."""

import sys

from tqdm import tqdm


class _Lines:
    """A text stream that turns tqdm's carriage returns into lines."""

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(total: int | None, description: str, unit: str) -> tqdm:
    """A tqdm bar of `total` units, or of an unknown number; a context manager with `update(n)`."""
    if sys.stderr.isatty():
        return tqdm(total=total, desc=description, unit=unit)
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        file=_Lines(),
        mininterval=10,
        ncols=100,
        ascii=True,
    )
