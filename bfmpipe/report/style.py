"""One look for all figures: a colour a method, the same fonts and sizes, reproducible files.

Colours are those of Okabe and Ito, told apart by colour-blind readers too; no figure touches
pyplot's global state.
"""

import functools
import itertools
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

P = ParamSpec("P")

BLACK, GREY, LIGHT = "#1a1a1a", "#8a8a8a", "#d9d9d9"
BLUE, ORANGE, GREEN, PINK = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
AMBER, SKY = "#e69f00", "#56b4e9"
PALE_PINK = "#ecc9dd"

# method -> name in figures, colour, line; the order is that of legends.
_METHODS: dict[str, tuple[str, str, Any]] = {
    "random": ("random policy", GREY, ":"),
    "zero-shot": ("zero-shot", BLACK, "--"),
    "lola": ("LoLA", BLUE, "-"),
    "rela": ("ReLA", ORANGE, "-"),
    "rela-safe": ("safe ReLA", ORANGE, "--"),
    "td3": ("TD3", GREEN, "-"),
    "best-of-N": ("best of N latents", PINK, "-"),
    "best-of-N-by-value": ("best of N by value", PALE_PINK, "-"),
    "lola-a": ("LoLA-A", BLUE, "-."),
    "rela-a": ("ReLA-A", ORANGE, "-."),
    "td3-scratch": ("TD3 from scratch", GREEN, "-."),
    "td3-z": ("TD3-z", GREEN, (0, (1, 1))),
    "cem": ("CEM", AMBER, "-"),
    "cma-es": ("CMA-ES", AMBER, "-."),
    "opti": ("OpTI", SKY, "-"),
    "hybrid": ("hybrid", PINK, "-."),
    "random-search": ("random search", SKY, "-."),
    "amortised": ("amortised", GREY, "-."),
}
_VARIANTS = (":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 3)), (0, (5, 2, 1, 2, 1, 2)))
_HATCHES = ("//", "\\\\", "..", "xx", "++", "oo", "||", "--")
_SPARE = (AMBER, SKY, PINK, BLUE, ORANGE, GREEN)

_SETTINGS = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same everywhere
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "axes.edgecolor": "#666666",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "grid.linewidth": 0.8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "pdf.fonttype": 42,  # text stays text
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw under this style, and under nothing else that matplotlib was told."""

    @functools.wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(_SETTINGS):
            return draw(*args, **kwargs)

    return inner


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    found = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(found)
    return found


def name(method: str) -> str:
    """A method as figures and pages call it; a variant by its method and what is added to it."""
    known = _known(method)
    if known == method:
        return _METHODS[method][0]
    return f"{_METHODS[known][0]} ({method.removeprefix(known)[1:]})" if known else method


def colour(method: str) -> str:
    """A method's colour, the same in every figure; a variant has its method's."""
    known = _known(method)
    return _METHODS[known][1] if known else _SPARE[zlib.crc32(method.encode()) % len(_SPARE)]


def line(method: str) -> Any:
    """A method's line style."""
    known = _known(method)
    if known == method:
        return _METHODS[method][2]
    return _VARIANTS[zlib.crc32(method.encode()) % len(_VARIANTS)] if known else "-."


def hatch(method: str) -> str:
    """What fills a method's bars, to tell it, as its line does, from others of its colour."""
    look = line(method)
    if look == "-":
        return ""
    dashes = ("--", "-.", (0, (1, 1)), *_VARIANTS)
    return _HATCHES[dashes.index(look)]


def ordered(methods: Iterable[str]) -> list[str]:
    """Methods in the order of legends, variants after theirs, unknown ones last and by name."""
    order = list(_METHODS)

    def place(method: str) -> tuple[int, str]:
        known = _known(method)
        return (order.index(known) if known else len(order), method)

    return sorted(methods, key=place)


def _known(method: str) -> str:
    """The method that this is, or is a variant of by its name; "" if of none."""
    known = [m for m in _METHODS if method == m or method.startswith(f"{m}-")]
    return max(known, key=len, default="")


def words(identifier: str) -> str:
    """A task's or column's name as words."""
    return identifier.replace("_", " ")


def legend(figure: Figure, handles: list[Any], columns: int | None = None) -> None:
    """One legend for the whole figure, below the panels, in as many columns as its width holds."""
    labels = [str(handle.get_label()) for handle in handles]
    width, most = figure.get_figwidth(), columns or len(handles)
    fitting = [n for n in range(1, most + 1) if _width(labels, n) < width]
    figure.legend(handles=handles, loc="outside lower center", ncols=max(fitting, default=1))


def _width(labels: list[str], columns: int) -> float:
    """Of a legend, in inches: a handle and its distances are six tenths, a letter is .073."""
    long, rest = divmod(len(labels), columns)
    ends = [i * long + min(i, rest) for i in range(columns + 1)]
    widest = [max(map(len, labels[a:b]), default=0) for a, b in itertools.pairwise(ends)]
    return sum(0.6 + 0.073 * letters for letters in widest)


def save(figure: Figure, path: Path, *, kind: str, dpi: int = 150) -> None:
    """Write a figure as "pdf" or "png", without dates: the same figure gives the same bytes."""
    metadata = {"CreationDate": None} if kind == "pdf" else {"Software": None}
    with mpl.rc_context(_SETTINGS):
        figure.savefig(path, format=kind, dpi=dpi, metadata=metadata)
