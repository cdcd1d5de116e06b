"""Signals as job schedulers and launchers send them: to every process of a run, and more than once."""

import os
import signal
import subprocess
import sys
import time

from many_runs import ROOT, recipe

from vlseg.config import dump_yaml
from vlseg.training import checkpoint


def test_a_signal_to_all_processes_saves_first(tiny_folder, blocks_jsonl, tmp_path):
    """The loading processes hear it too, and the run hears it twice: it saves, and ends with 130."""
    changes = ["steps=5000", "save_every=5000", "data.workers=2", "data.val=null", "mixed_precision=no"]
    changes.append("model.checkpointing=false")
    (tmp_path / "run.yaml").write_text(dump_yaml(recipe("full", tmp_path / "run", tiny_folder, blocks_jsonl, *changes)))
    variables = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-m", "vlseg.cli", "train", str(tmp_path / "run.yaml")]
    log = tmp_path / "run" / "metrics.jsonl"
    with open(tmp_path / "told", "w+b") as told:
        run = subprocess.Popen(call, env=variables, stderr=told, start_new_session=True)
        try:
            for _ in range(6000):
                if run.poll() is not None or (log.exists() and len(log.read_text().splitlines()) > 2):
                    break
                time.sleep(0.1)
            for _ in range(2):
                os.killpg(run.pid, signal.SIGTERM)
                time.sleep(0.05)
            code = run.wait(300)
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
        told.seek(0)
        words = told.read().decode()
    assert code == 130, words
    (saved,) = checkpoint.step_folders(log.parent / "checkpoints")
    assert f"stopped by signal 15 at {saved.name.replace('-', ' ')}; the same command goes on" in words
    assert checkpoint.read_state(saved)["step"] >= 3
