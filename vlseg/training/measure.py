"""`python -m vlseg.training.measure FOLDER`: what a checkpoint takes to run, measured in a process of its own.

Reads {"pictures": [path, ...], "queries": [text, ...]} from stdin; prints {"seconds": a picture, "peak_mib": memory}.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> int:
    """Load, answer every picture twice, and time the second round."""
    request = json.load(sys.stdin)
    import torch

    from vlseg.data.images import open_image
    from vlseg.metrics.cost import peak_memory
    from vlseg.models.modeling import VLSegModel
    from vlseg.models.processing import VLSegProcessor
    from vlseg.systems.native import NativeSystem
    from vlseg.systems.quiet import quiet_loading

    folder = Path(sys.argv[1])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with quiet_loading():
        model = VLSegModel.from_pretrained(folder, dtype=torch.float32, device_map={"": device})
    system = NativeSystem(model, VLSegProcessor.from_pretrained(folder), str(folder))
    seconds = 0.0
    for timed in (False, True):
        for path in request["pictures"]:
            picture, _ = open_image(path)
            start = time.perf_counter()
            system.segment(picture, request["queries"])
            seconds += (time.perf_counter() - start) * timed
    peaks = peak_memory()
    print(json.dumps({"seconds": seconds / len(request["pictures"]), "peak_mib": peaks.get("gpu", peaks["process"])}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
