"""Measurements: each module runs as python -m benchmarks.<name> and says what it prints."""

from bfmpipe.cli import let_threads_sleep

let_threads_sleep()
