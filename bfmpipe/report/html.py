"""HTML by hand: every function takes text, escapes it, and returns markup.

Markup already made is told from text by its class, `Markup`.
"""

import base64
import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path


class Markup(str):
    """HTML that is to be taken as it is."""

    __slots__ = ()


def join(parts: Iterable[str], between: str = "") -> Markup:
    """Parts, escaped where they are text, one after the other."""
    return Markup(between.join(_safe(part) for part in parts))


def tag(name: str, *parts: str, **attributes: str) -> Markup:
    """An element; `class_` stands for the attribute class."""
    words = [name, *(f'{k.rstrip("_")}="{html.escape(v)}"' for k, v in attributes.items())]
    return Markup(f"<{' '.join(words)}>{join(parts)}</{name}>")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> Markup:
    """A table whose first `words` columns are text and the others numbers."""

    def line(cell: str, cells: Sequence[str]) -> Markup:
        parts = (
            tag(cell, text) if i < words else tag(cell, text, class_="n")
            for i, text in enumerate(cells)
        )
        return tag("tr", *parts)

    inside = (tag("thead", line("th", head)), tag("tbody", *(line("td", row) for row in rows)))
    return tag("div", tag("table", *inside), class_="scroll")


def bullets(items: Iterable[str]) -> Markup:
    """A list."""
    return tag("ul", *(tag("li", item) for item in items))


def definitions(items: Iterable[tuple[str, str]]) -> Markup:
    """A list of terms and what they mean."""
    return tag("dl", *(join((tag("dt", term), tag("dd", text))) for term, text in items))


def section(title: str, *parts: str) -> Markup:
    """A section with a heading that can be linked to."""
    return tag("section", tag("h2", title), *parts, id=anchor(title))


def anchor(title: str) -> str:
    """The name a section is linked by."""
    return "-".join(title.lower().split())


def picture(png: bytes, title: str, caption: str) -> Markup:
    """A figure with its PNG inside the page."""
    data = base64.b64encode(png).decode("ascii")
    image = f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'
    text = tag("figcaption", tag("b", title + "."), " ", caption)
    return tag("figure", tag("div", Markup(image), class_="scroll"), text)


def page(title: str, *parts: str) -> str:
    """A whole page, complete in itself: no scripts, and nothing loaded from elsewhere."""
    style = Path(__file__).with_suffix(".css").read_text("utf-8")
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{style}</style>"
    )
    body = join(parts, "\n")
    return f"{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n"


def number(value: float, digits: int = 1, *, sign: bool = False, unit: str = "") -> str:
    """A number as text, with thousands apart; a dash for NaN."""
    if math.isnan(value):
        return "–"
    text = f"{value:{'+' if sign else ''},.{digits}f}".replace("-", "−")
    return f"{text} {unit}" if unit else text


def interval(
    value: float, low: float, high: float, digits: int = 1, *, sign: bool = False, unit: str = ""
) -> Markup:
    """A number, and below it, smaller, its interval."""
    shown = number(value, digits, sign=sign, unit=unit)
    if math.isnan(value) or math.isnan(low):
        return join((shown,))
    ends = f"{number(low, digits)} to {number(high, digits)}"
    return join((shown, tag("small", ends)))


def duration(seconds: float) -> str:
    """Seconds as text in the units one would say them in."""
    if math.isnan(seconds):
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def _safe(part: str) -> str:
    return part if isinstance(part, Markup) else html.escape(str(part))
