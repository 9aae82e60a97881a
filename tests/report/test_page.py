"""The page of results, composed of tables: what it says of methods and claims."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from bfmpipe.report.page import Results, compose
from bfmpipe.report.verdicts import Claim

KINDS = get_args(Claim.model_fields["kind"].annotation)


@pytest.fixture
def results(tables):
    """Results with one claim of each kind; the even ones held."""
    n = len(KINDS)
    words = {"domain": "maze", "agent": "fb", "family": "reach"}
    verdicts = {name: np.array([word] * n, dtype=object) for name, word in words.items()}
    verdicts |= {
        "claim": np.array(KINDS, dtype=object),
        "statement": np.array([f"The claim of {kind}." for kind in KINDS], dtype=object),
        "kind": np.array(KINDS, dtype=object),
        "bar": np.arange(n) + 0.25,
        "figure": np.arange(n) + 7000.0,
        "low": np.where(np.arange(n) == 0, 6000.0, np.nan),
        "high": np.where(np.arange(n) == 0, 8000.0, np.nan),
        "verdict": np.where(np.arange(n) % 2 == 0, "held", "not held").astype(object),
    }
    return Results(
        title="Results",
        summary=tables["summary"],
        best_of=tables["best_of"],
        verdicts=verdicts,
        confidence=0.95,
        figures={},
        experiment={},
        versions={},
        digests={},
    )


def test_the_lede_names_the_methods_that_adapt(results):
    assert {"best-of-N", "best-of-N-by-value", "random"} < set(results.summary["method"])
    lede = compose(results).split('class="lede">')[1].split("</p>")[0]
    assert lede.endswith("and then adapted to each task by LoLA and ReLA.")


def test_every_kind_of_claim_says_what_was_measured_against_which_bar(results):
    section = compose(results).split('id="claims"')[1].split("</section>")[0]
    rows = section.split("<tbody>")[1].split("</tbody>")[0].split("<tr>")[1:]
    assert len(rows) == len(KINDS)
    for i, (kind, row) in enumerate(zip(KINDS, rows, strict=True)):
        assert f"The claim of {kind}." in row
        assert f" {i}.25" in row
        assert f"7,00{i}.0" in row
        assert (">held<" in row) == (i % 2 == 0)
        assert (">not held<" in row) == (i % 2 == 1)
    assert "6,000.0 to 8,000.0" in rows[0]
    assert "to" not in rows[2].split("7,002")[1]
    assert "Intervals are Student&#x27;s, 95 %, of the seeds" in section


def test_a_figure_that_is_not_known_is_a_dash(results):
    unknown = {**results.verdicts, "figure": np.full(len(KINDS), np.nan)}
    page = compose(replace(results, verdicts=unknown))
    rows = page.split('id="claims"')[1].split("<tbody>")[1].split("</tbody>")[0]
    assert rows.count(">–<") == len(KINDS)


def test_without_claims_there_is_no_section(results):
    none = {name: column[:0] for name, column in results.verdicts.items()}
    for verdicts in (none, {}):
        assert "claims" not in compose(replace(results, verdicts=verdicts)).lower()
