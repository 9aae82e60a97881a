"""Not collected but by sanitizers.py, as the first of its tests."""

import os
from pathlib import Path

from bfmpipe.kernels import _cpu, extension


def test_cpu_module():
    site = os.environ["PYTHONPATH"].split(os.pathsep)[0]
    for module in (_cpu, extension):
        assert Path(module.__file__).is_relative_to(site)
    assert _cpu.sanitized


def test_cuda_module_on_the_cpu(cuda_on_cpu):
    module = Path(cuda_on_cpu.__file__).read_bytes()
    assert b"__asan_report_load" in module
    assert b"__ubsan_handle" in module
