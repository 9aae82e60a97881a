import base64
import json
import re
import struct
import zlib
from html.parser import HTMLParser

import pyarrow.parquet as pq
import pytest

from bfmpipe.data.tables import read_table, write_table
from bfmpipe.stages.report import Report, report
from bfmpipe.types import UserError

VOID = {"meta", "img", "link", "br"}
NAMES = ("curves_aggregate", "improvement", "training", "something_new")


def chunk(kind, data):
    content = kind + data
    return struct.pack(">I", len(data)) + content + struct.pack(">I", zlib.crc32(content))


def png(grey):
    """The smallest PNG: one pixel."""
    head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes([0, grey])))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


class Page(HTMLParser):
    """Checks that every element is closed in order; collects images, links, ids and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.links, self.ids, self.tags = [], [], [], [], set()
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(attrs["src"])
        if "href" in attrs:
            self.links.append(attrs["href"])
        if "id" in attrs:
            self.ids.append(attrs["id"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words += data


@pytest.fixture
def figures(tmp_path):
    directory = tmp_path / "figures" / "point_mass_maze" / "fb"
    directory.mkdir(parents=True)
    for i, name in enumerate(NAMES):
        (directory / f"{name}.png").write_bytes(png(i))
    return [directory / f"{name}.png" for name in NAMES]


@pytest.fixture
def make(results, figures, tmp_path):
    def run(*, experiment=None, name="", **changed):
        given = {
            "summary": results["summary"],
            "best_of": results["best_of"],
            "verdicts": results["verdicts"],
            "figures": figures,
            "benchmarks": tmp_path / "missing",
            "losses": results["losses"],
            "output": tmp_path / "report.html",
        } | changed
        report(Report(name=name, experiment=experiment or {"seeds": [0, 1]}), **given)
        return given["output"].read_text("utf-8")

    return run


def test_is_one_whole_page_with_every_figure(make, figures):
    text = make()
    page = Page(text)
    found = {base64.b64decode(src.removeprefix("data:image/png;base64,")) for src in page.images}
    assert found == {path.read_bytes() for path in figures}
    assert "script" not in page.tags
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert "http" not in text
    assert make() == text


def test_says_what_was_found_and_how_it_was_measured(make):
    words = Page(make()).words
    assert "+50 %" in words  # 30 of 60.5
    assert "1 task (reach top left), 2 seeds, 2 evaluation episodes each" in words
    assert "LoLA 8 (800 steps)" in words
    assert "of returns, a bootstrap over the seeds" in words
    assert "seeds: [0, 1]" in words
    assert "code-of-losses" in words
    assert "What the jobs cost was not recorded" in words


def test_an_experiments_name_stands_in_the_title(make):
    title = "Fast adaptation of a behavioural foundation model"
    assert f"<title>{title}</title>" in make()
    assert f"<title>{title}: unlearning</title>" in make(name="unlearning")


def test_claims_stand_first_with_what_was_measured_and_the_verdict(make):
    text = make()
    page = Page(text)
    assert page.links.index("#claims") < page.links.index("#results-at-a-glance")
    assert text.index('id="claims"') < text.index('id="results-at-a-glance"')
    table = re.search(r"<tbody>(.*?)</tbody>", text.split('id="claims"')[1])[1]
    rows = [Page(row).words for row in re.findall("<tr>.*?</tr>", table)]
    assert [row.split(".")[0] for row in rows] == [
        "LoLA doubles <returns>",
        "TD3 does not drop",
    ] * 2
    assert [("reach" in row, row.endswith("not held")) for row in rows] == [
        (True, True),
        (True, False),
        (False, False),
        (False, True),
    ]
    assert "bar: at least 100, and its interval above 0" in rows[0]
    assert "49.6" in rows[0]
    assert "49.6 to 49.6" in rows[0]
    assert rows[1].endswith("16.53held")  # 10 of 60.5, without an interval


def test_without_claims_there_is_no_section_of_them(make, results, tmp_path):
    columns, origin = read_table(results["verdicts"], "verdicts")
    none = tmp_path / "none.parquet"
    shape = pq.read_schema(results["verdicts"])
    write_table(none, shape, {name: column[:0] for name, column in columns.items()}, origin)
    text = make(verdicts=none)
    assert "claims" not in Page(text).ids
    assert "#claims" not in Page(text).links


def test_figures_of_the_training_stand_in_its_section(make, figures):
    names = ("training", "evaluations", "spectrum", "q_values")
    own = [figures[0].with_name(f"{name}.png") for name in names]
    for i, path in enumerate(own):
        path.write_bytes(png(100 + i))
    text = make(figures=[figures[0], *reversed(own)])
    before, after = text.split('id="training"')
    pictures = [base64.b64encode(path.read_bytes()).decode() for path in own]
    assert base64.b64encode(figures[0].read_bytes()).decode() in before
    assert not any(picture in before for picture in pictures)
    places = [after.index(picture) for picture in pictures]
    assert places == sorted(places)
    assert "Expected and received" in after


def test_a_diverged_training_is_announced(make, results):
    words = Page(make()).words
    assert "The divergence alarm rang in 1 of 2 trainings" in words
    assert "fb on point_mass_maze with seed 1, the loss turned at update 5,000" in words
    words = Page(make(losses=results["losses"][:1])).words
    assert "rang in none of 1 training." in words


def test_times_come_from_the_benchmarks(make, tmp_path):
    for name, wall, cpu in (
        ("pretrain/point_mass_maze-fb-seed0", 61, 120),
        ("adapt/point_mass_maze-fb-lola", 2, 6.4),  # for two seeds
    ):
        path = tmp_path / "benchmarks" / f"{name}.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"wall": wall, "cpu": cpu, "memory": 50}))
    words = Page(make(benchmarks=tmp_path / "benchmarks")).words
    assert "1 min 1 s" in words
    assert "2.000" in words  # 3.2 s of CPU time over 2 families x 1 task x 800 steps, in ms


def test_what_comes_from_outside_is_escaped(make):
    text = make(experiment={"<script>": "&</pre><img src=x>"})
    page = Page(text)
    assert "script" not in page.tags
    assert "<img src=x>" not in text
    assert "&</pre><img src=x>" in page.words


def test_several_models_are_told_apart(make, figures, tmp_path):
    other = tmp_path / "figures" / "walker" / "hilp" / "improvement.png"
    other.parent.mkdir(parents=True)
    other.write_bytes(png(9))
    words = Page(make(figures=[*figures, other])).words
    assert "walker, hilp" in words
    assert "point_mass_maze, fb" in words


def test_a_file_that_is_no_figure_is_named(make, tmp_path):
    with pytest.raises(UserError, match=r"gone\.png: cannot be read"):
        make(figures=[tmp_path / "gone.png"])
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(UserError, match=r"text\.png: not a PNG"):
        make(figures=[tmp_path / "text.png"])
