"""Two processes run the tests on two cores: each computes with one thread, whose sums are always the same."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch
