"""The sanitizers find what they should, and nothing in the kernels; `make sanitize` runs more."""

import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from bfmpipe.kernels import _cpu
from tests.kernels import sanitizers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not sanitizers.runtimes(), reason="the compiler has no libasan.so and libubsan.so"
    ),
]

# minutes under the sanitizers: the widest network, torch's own checks, sweeps of shapes
SLOW = "spec5 or sweep or opcheck or gradcheck or compiles"
PARTS = {  # which two cores run at the same time
    f"not ({SLOW} or cuda)": ["test_sf_evaluate"],
    f"not ({SLOW})": ["test_leave_one_out", "test_cuda_on_cpu"],
}


@pytest.fixture(scope="module")
def site():
    return sanitizers.install()


def test_the_kernels(site):
    said = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}

    def run(chosen, files):
        return sanitizers.run_tests(site, "-k", chosen, files=files, **said)

    with ThreadPoolExecutor() as pool:
        for done in pool.map(run, PARTS, PARTS.values()):
            assert done.returncode == 0, done.stdout
            assert "AddressSanitizer" not in done.stdout
            assert "runtime error" not in done.stdout


# what a kernel is told is changed on the way to it
WRONG = """
import importlib, sys
from bfmpipe.kernels import _cpu, selfcheck
_cpu.use_instruction_set(sys.argv[1])
module = importlib.import_module(f"bfmpipe.kernels.{sys.argv[2]}")
launch = module.launch

def wrong(name, device, *arguments):
    arguments = list(arguments)
    %s
    launch(name, device, *arguments)

module.launch = wrong
import torch
%s
print("not noticed")
"""
LEAVE_ONE_OUT = "selfcheck._error_of_leave_one_out(True, torch.float32, 'cpu')"
VALUES = "selfcheck._error_of_values(selfcheck._two_embeddings(), 'full', torch.float32, 'cpu')"
GRADIENT = "selfcheck._error_of_gradient(selfcheck._two_embeddings(), torch.float32, 'cpu')"
MORE_STEPS = "arguments[8] += 1"
HUGE_SIZES = "arguments[9:12] = 0, 2**40, 2**40"
MORE_PAIRS = "groups, B, K = arguments[10]; arguments[10] = groups, B, K + 1"


CASES = [
    pytest.param("sf_evaluate", MORE_PAIRS, VALUES, "heap-buffer-overflow", name, id=name)
    for name in _cpu.instruction_sets()
]
CASES += [
    pytest.param(*case, _cpu.instruction_set(), id=name)
    for name, case in {
        "gradient": ("sf_evaluate", MORE_PAIRS, GRADIENT, "heap-buffer-overflow"),
        "leave_one_out": ("leave_one_out", MORE_STEPS, LEAVE_ONE_OUT, "heap-buffer-overflow"),
        "overflow": ("leave_one_out", HUGE_SIZES, LEAVE_ONE_OUT, "signed integer overflow"),
    }.items()
]


@pytest.mark.parametrize(("kernel", "change", "call", "found", "instruction_set"), CASES)
def test_what_is_wrong_is_found(site, kernel, change, call, found, instruction_set):
    code = WRONG % (change, call)
    done = sanitizers.run(site, "-c", code, instruction_set, kernel, capture_output=True, text=True)
    assert done.returncode != 0
    assert "not noticed" not in done.stdout
    assert found in done.stderr
    assert f"{kernel}.cpp" in done.stderr
