"""The plain metrics need no torch."""

import subprocess
import sys
from pathlib import Path

import vlseg.metrics

ROOT = Path(vlseg.metrics.__file__).resolve().parents[2]


def loaded(modules):
    code = "; ".join(f"import {module}" for module in ["sys", *modules]) + "; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    return done.stdout.strip() == "True"


def test_metrics_without_torch():
    names = sorted(path.stem for path in (ROOT / "vlseg" / "metrics").glob("*.py") if path.stem != "__init__")
    assert "torch_metrics" in names
    plain = [f"vlseg.metrics.{name}" for name in names if name != "torch_metrics"]
    assert len(plain) >= 9
    assert not loaded([*plain, "vlseg.cli.eval", "vlseg.evaluation.report", "vlseg.evaluation.compare"])
    assert loaded(["vlseg.metrics.torch_metrics"])
