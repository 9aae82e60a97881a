import math

from bfmpipe.report import html


def test_text_is_escaped_and_markup_is_not():
    inner = html.tag("b", "a < b & c")
    assert html.tag("p", inner, "<script>") == "<p><b>a &lt; b &amp; c</b>&lt;script&gt;</p>"
    assert html.tag("p", "x", class_='"><script>') == '<p class="&quot;&gt;&lt;script&gt;">x</p>'


def test_tables_set_words_left_and_numbers_right():
    table = html.table(("name", "n"), [("<a>", "1")])
    assert "<th>name</th>" in table
    assert '<td>&lt;a&gt;</td><td class="n">1</td>' in table


def test_numbers():
    assert html.number(1234.56) == "1,234.6"
    assert html.number(-0.5, 2) == "−0.50"
    assert html.number(12, 0, sign=True, unit="%") == "+12 %"
    assert html.number(math.nan) == "–"
    assert html.interval(1, 0.5, 2) == "1.0<small>0.5 to 2.0</small>"
    assert html.interval(1, math.nan, math.nan) == "1.0"


def test_durations():
    assert html.duration(3.04) == "3.0 s"
    assert html.duration(59.97) == "1 min 0 s"
    assert html.duration(125) == "2 min 5 s"
    assert html.duration(2 * 3600 + 59.6) == "2 h 1 min"
    assert html.duration(math.nan) == "–"
