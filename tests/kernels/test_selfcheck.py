import math
import shutil
from pathlib import Path

import pytest
import torch

from bfmpipe.kernels import _cpu, extension, selfcheck
from bfmpipe.types import UserError


def places():
    gpu = ["gpu"] if selfcheck.gpu_problem() is None else []
    return [*_cpu.instruction_sets(), *gpu]


def test_every_kernel_is_checked_everywhere_and_well():
    checks = list(selfcheck.checks())
    assert [check for check in checks if not check.ok] == []
    assert len({check.name for check in checks}) == len(checks)
    by_place = {place: [c for c in checks if c.name.startswith(f"{place}: ")] for place in places()}
    assert sum(map(len, by_place.values())) == len(checks)
    for of_place in by_place.values():
        assert sum("leave_one_out" in check.name for check in of_place) == 4
        assert sum("sf_evaluate" in check.name for check in of_place) == 10


def test_the_instruction_set_in_use_stays():
    in_use = _cpu.instruction_set()
    checks = selfcheck.checks()
    next(checks)
    assert _cpu.instruction_set() == _cpu.instruction_sets()[0]
    checks.close()
    assert _cpu.instruction_set() == in_use


@pytest.mark.parametrize("kernel", ["leave_one_out", "sf_evaluate"])
def test_a_kernel_that_is_off_is_found(kernel, monkeypatch):
    reference = getattr(selfcheck, f"{kernel}_reference")

    def off(*arguments, **settings):
        out = reference(*arguments, **settings)
        return [1.01 * x for x in out] if isinstance(out, tuple) else 1.01 * out

    monkeypatch.setattr(selfcheck, f"{kernel}_reference", off)
    for check in selfcheck.checks():
        assert check.ok == (kernel not in check.name)
        if not check.ok:
            assert check.error == pytest.approx(1e-2, rel=0.5)


def test_one_wrong_number_is_found():
    inputs, _ = selfcheck._inputs()
    network = selfcheck._one_embedding()
    want = selfcheck.sf_evaluate_reference(*selfcheck._cast((network, *inputs)))
    got = want.clone()
    got[-1, -1, -1] += 1e-3
    assert selfcheck._largest_error([got], [want]) > selfcheck._TOLERANCE["float32"]
    got[-1, -1, -1] = math.nan
    assert not selfcheck.Check("", selfcheck._largest_error([want, got], [want] * 2), 1.0).ok


def test_a_kernel_that_fails_says_why(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("CUDA: no kernel image is available\nand a second line")

    monkeypatch.setattr(selfcheck, "leave_one_out", fail)
    failed = [check for check in selfcheck.checks() if not check.ok]
    assert len(failed) == 4 * len(places())
    assert {check.problem for check in failed} == {"CUDA: no kernel image is available"}


def test_facts_of_this_build():
    facts = selfcheck.facts()
    assert facts["torch"].startswith(torch.__version__)
    assert f"built for {' '.join(_cpu.compiled_instruction_sets)} by " in facts["cpu kernels"]
    assert set(_cpu.instruction_sets()) <= set(_cpu.compiled_instruction_sets)
    assert facts["processor"].endswith(f"; {_cpu.instruction_set()} is in use")
    built = extension._find_cuda() is not None
    assert facts["cuda kernels"].startswith("built for " if built else "not built (")
    assert _cpu.source_digest().startswith(facts["sources"].split()[1].rstrip(";"))


def test_a_stale_build_is_not_checked(tmp_path, monkeypatch):
    csrc = shutil.copytree(Path(__file__).parents[2] / "csrc", tmp_path / "csrc")
    monkeypatch.setattr(selfcheck, "check_build", lambda: extension.check_build(csrc))
    assert selfcheck.facts()["sources"].endswith("the build is current")
    (csrc / "pairs.h").open("a").write("\n")
    with pytest.raises(UserError, match="built from other sources"):
        selfcheck.facts()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: nothing to complain of")
def test_without_a_gpu_the_reason_is_one_sentence():
    reason = selfcheck.facts()["gpu"]
    assert "built without CUDA kernels" in reason or "cannot use a GPU" in reason
    assert reason.endswith(".")
    assert "\n" not in reason
