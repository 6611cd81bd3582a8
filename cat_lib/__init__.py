"""Compute as Teacher and its siblings. Importing it makes OpenMP's threads wait politely.

Threads that wait for each other spin for a while before they sleep. On a machine with another busy process they spin
for one that is not running. `benchmarks/neighbour.py` measures what a shorter spin loses alone and gains beside.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "500")  # read when torch is loaded, which comes later
