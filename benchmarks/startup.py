"""Start-up: seconds of fresh processes, warm file cache.

python benchmarks/startup.py [--rounds 5] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

from timing import machine

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import vlseg": [sys.executable, "-c", "import vlseg"],
    "vlseg --help": [sys.executable, "-m", "vlseg.cli", "--help"],
    "import torch": [sys.executable, "-c", "import torch"],
    "first mask": [
        sys.executable,
        "-c",
        "import numpy as np; from vlseg import Segmenter; Segmenter()(np.zeros((256, 256, 3), np.uint8), 'the dog')",
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(args.rounds + 1):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if number:  # the first round fills the file cache
                seconds[name].append(time.perf_counter() - start)
    result = {"machine": machine(), "seconds": {n: round(statistics.median(s), 3) for n, s in seconds.items()}}
    if args.json:
        print(json.dumps(result))
        return
    print("  ".join(f"{k}={v}" for k, v in result["machine"].items()))
    for name, value in result["seconds"].items():
        print(f"{name:16s}{value:8.2f} s")


if __name__ == "__main__":
    main()
