"""Benchmarks: what they say of themselves and of bad arguments, before they measure anything."""

import ast
import runpy
import sys
from pathlib import Path

import pytest
import torch

DIRECTORY = Path(__file__).parents[1] / "benchmarks"
NAMES = sorted(p.stem for p in DIRECTORY.glob("*.py") if "__main__" in p.read_text())


def run(monkeypatch, name, *words):
    """Run a benchmark as python -m does; what it exits with."""
    monkeypatch.setattr(sys, "argv", [name, *words])
    monkeypatch.delitem(sys.modules, f"benchmarks.{name}", raising=False)  # another imported it
    with pytest.raises(SystemExit) as caught:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
    return caught.value.code


@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_is_measured_and_measures_nothing(monkeypatch, capsys, name):
    assert not run(monkeypatch, name, "--help")
    doc = ast.get_docstring(ast.parse((DIRECTORY / f"{name}.py").read_text()))
    out = capsys.readouterr().out
    assert doc.splitlines()[0][:40] in out
    assert f"benchmarks.{name}" in out


MISTAKES = [
    ("training", ["cdua"], "DEVICE is 'cdua'; valid: cpu, cuda; did you mean cuda?"),
    ("training", ["--hlep"], "DEVICE is '--hlep'; valid: cpu, cuda"),
    ("training", ["cuda"], "torch finds no usable GPU on this machine; leave cuda out"),
    ("sf_evaluate", ["cuda"], "torch finds no usable GPU on this machine; leave cuda out"),
    ("leave_one_out", ["cuda"], "torch finds no usable GPU on this machine; leave cuda out"),
    ("adaptation", [], "0 arguments given; usage: python -m benchmarks.adaptation CONFIG [SEED]"),
    ("adaptation", ["a", "one"], "SEED is 'one'; valid: a whole number"),
    ("training", ["cpu", "2"], "2 arguments given; usage: python -m benchmarks.training [cpu|cuda"),
    ("data", ["much"], "MILLIONS is 'much'; valid: a number"),
    ("estimator", ["model"], "a MODEL needs its DATA"),
    ("adaptation", ["none.yaml"], "none.yaml: no such file"),
    *(
        (name, ["nowhere"], "nowhere/tables: no such directory; run the experiment first (`make`")
        for name in ("bars", "agents", "motions", "suite")
    ),
]


@pytest.mark.parametrize(("name", "words", "said"), MISTAKES)
def test_a_mistake_is_one_sentence(monkeypatch, tmp_path, name, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code = run(monkeypatch, name, *words)
    assert str(code).startswith(f"error: {said}")
    assert "\n" not in code
