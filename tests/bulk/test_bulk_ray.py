"""The engine `ray`: on a cluster of two nodes of which one is lost, every image is answered once and in order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cheap
import pytest

ray = pytest.importorskip("ray", reason='needs pip install "ray[data]"')

ROOT = Path(__file__).resolve().parents[2]
COUNT, BROKEN = 240, 60

CLUSTER = """
import json, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
import cheap
from vlseg.bulk.ray_engine import HEALTH
from vlseg.bulk.run import run_bulk

images, out, said = map(Path, sys.argv[1:])  # Ray's own processes write to stdout as well
store = 100 * 2**20
cluster = Cluster(initialize_head=True, head_node_args={
    "num_cpus": 1, "object_store_memory": store, "include_dashboard": False, "_system_config": HEALTH})
other = cluster.add_node(num_cpus=1, object_store_memory=store)
ray.init(address=cluster.address, log_to_driver=False)
cluster.wait_for_nodes()
nodes = []

def watch():
    while len(list(out.glob("results-*"))) < 6:
        time.sleep(0.05)
    cluster.remove_node(other, allow_graceful=False)  # SIGKILL to the node and all that runs on it
    while sum(node["Alive"] for node in ray.nodes()) > 1:
        time.sleep(0.1)
    nodes.append(len(list(out.glob("results-*"))))

threading.Thread(target=watch, daemon=True).start()
start = time.monotonic()
summary = run_bulk(cheap.job(images, pause=0.05, shard=10), out, "ray", 0)
seconds = time.monotonic() - start
from ray._common.usage.usage_lib import usage_stats_enabled
said.write_text(json.dumps({"images": summary.images, "seconds": seconds, "lost_at": nodes,
                            "statistics": usage_stats_enabled()}))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_node_is_lost_in_the_middle(tmp_path):
    images, out = tmp_path / "images", tmp_path / "out"
    broken = cheap.draw(images, COUNT, BROKEN)
    out.mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(cheap.__file__).parent}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER, str(images), str(out), str(tmp_path / "said.json")],
        env=environment, capture_output=True, text=True, timeout=560, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["images"] == COUNT
    assert said["statistics"] is False
    assert said["lost_at"], "the node was not lost before the run was over"
    assert said["lost_at"][0] < COUNT // 10
    lines = [json.loads(line) for file in sorted(out.glob("results-*")) for line in file.read_text().splitlines()]
    answered = [int(Path(line["image"]).stem) for line in lines]
    wrong = [json.loads(line)["image"] for line in (out / "errors.jsonl").read_text().splitlines()]
    assert wrong == broken
    assert answered == sorted(set(range(COUNT)) - {int(Path(name).stem) for name in broken})
    assert said["seconds"] < 120


@pytest.mark.slow
def test_a_cluster_of_its_own_and_what_the_model_refuses(tmp_path):
    cheap.draw(tmp_path / "images", 12, broken=0)
    code = (
        "import dataclasses, sys, cheap\nfrom pathlib import Path\nfrom vlseg.bulk.run import run_bulk\n"
        "from vlseg.types import VLSegError\njob = cheap.job(Path(sys.argv[1]), shard=5)\n"
        "assert run_bulk(job, Path(sys.argv[2]), 'ray', 1).errors == []\n"
        "try:\n    run_bulk(dataclasses.replace(job, mode='path'), Path(sys.argv[3]), 'ray', 1)\n"
        "except VLSegError as error:\n    Path(sys.argv[4]).write_text(str(error))\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(cheap.__file__).parent}"}
    environment.pop("RAY_ADDRESS", None)
    places = [str(tmp_path / name) for name in ("images", "out", "refused", "said")]
    done = subprocess.run(
        [sys.executable, "-c", code, *places], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "bright has no path mode" in (tmp_path / "said").read_text()
    assert len(list((tmp_path / "out").glob("results-*-of-00003.jsonl"))) == 3
    assert not list((tmp_path / "refused").glob("results-*"))
