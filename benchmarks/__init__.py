"""Measurements: each module runs as python -m benchmarks.<name> and says what it prints."""

import os

# as on the command line: idle threads do not spin on the cores that the simulator needs
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
