"""Percentiles and peak memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vlseg.metrics.cost import percentiles


def test_percentiles():
    assert percentiles([]) == {}
    assert percentiles([0.5]) == {"p50_ms": 500.0, "p95_ms": 500.0}
    seconds = np.arange(1, 101) / 1000
    got = percentiles(list(np.random.default_rng(0).permutation(seconds)))
    assert got == {"p50_ms": pytest.approx(50.5), "p95_ms": pytest.approx(95.05)}


def test_peak_memory_sees_what_was_used_and_given_back():
    code = (
        "import numpy as np; from vlseg.metrics.cost import peak_memory; before = peak_memory()['process']; "
        "np.ones(200 * 2**17).sum(); print(peak_memory()['process'] - before)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=60, check=True
    )
    assert 150 < float(done.stdout) < 400
