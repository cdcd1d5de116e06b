"""Thousands of images through a bulk run that is killed twice: complete, in order, and with memory that stays flat.

    python benchmarks/bulk.py [--images 5000] [--processes 1] [--plot bulk.png] [--json]

The images are generated, one in a hundred is broken, and the model is a stand-in that costs next to nothing
(tests/bulk/cheap.py), so that time and memory are those of the bulk run itself. The process is killed (SIGKILL) after
a third and after two thirds of the shards.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from timing import machine

TESTS = Path(__file__).resolve().parent.parent / "tests" / "bulk"
SHARD = 100


def resident(pid: int) -> float:
    """MiB of a process and those it has started."""
    total, wanted = 0.0, {pid}
    for stat in sorted(Path("/proc").glob("[0-9]*/stat"), key=lambda path: int(path.parent.name)):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            own = int(stat.parent.name)
            if own == pid or int(fields[1]) in wanted:
                wanted.add(own)
                total += int((stat.parent / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        except (OSError, IndexError):
            continue  # it has ended meanwhile
    return total


def leg(call: list[str], out: Path, kill_at: int | None, samples: list[dict[str, float]], begin: float) -> int | None:
    """One process until it ends, or is killed once `kill_at` shards are there; its exit code, None where killed."""
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL)
    number = 1 + max((int(sample["leg"]) for sample in samples), default=0)
    while process.poll() is None:
        shards, size = len(list(out.glob("results-*"))), resident(process.pid)
        if not size:
            continue  # it has just ended
        samples.append({
            "leg": number, "seconds": time.monotonic() - begin, "shards": shards, "MiB": size
        })  # fmt: skip
        if kill_at is not None and shards >= kill_at:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return None
        time.sleep(0.2)
    return process.returncode


def check(out: Path, count: int, broken: list[str]) -> dict[str, Any]:
    """What was answered, against what was asked."""
    from vlseg.bulk.output import read_results

    done = [int(Path(result["image"]).stem) for result in read_results(out)]
    errors = [json.loads(line)["image"] for line in (out / "errors.jsonl").read_text().splitlines()]
    missing = set(range(count)) - set(done) - {int(Path(name).stem) for name in errors}
    return {
        "answered": len(done),
        "broken": len(errors),
        "twice": len(done) - len(set(done)),
        "lost": len(missing),
        "in_order": done == sorted(done),
        "errors_are_the_broken": errors == broken,
    }


def flatness(samples: list[dict[str, float]]) -> dict[str, float]:
    """Median MiB of the second and of the last fifth of the longest leg (the first fifth is imports)."""
    longest = max({sample["leg"] for sample in samples}, key=lambda leg: sum(s["leg"] == leg for s in samples))
    own = [sample for sample in samples if sample["leg"] == longest]
    fifth = max(1, len(own) // 5)
    early, late = (statistics.median(s["MiB"] for s in part) for part in (own[fifth : 2 * fifth] or own, own[-fifth:]))
    images = SHARD * (own[-1]["shards"] - own[fifth]["shards"])
    return {"early_MiB": round(early, 1), "late_MiB": round(late, 1), "images_between": images}


def plot(file: Path, samples: list[dict[str, float]]) -> None:
    """Memory and images over time, a line where the run was killed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (top, bottom) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 5), layout="constrained")
    for number in sorted({sample["leg"] for sample in samples}):
        own = [sample for sample in samples if sample["leg"] == number]
        seconds = [sample["seconds"] for sample in own]
        top.plot(seconds, [sample["MiB"] for sample in own], label=f"run {number:.0f}")
        bottom.plot(seconds, [SHARD * sample["shards"] for sample in own])
        for axis in (top, bottom):
            axis.axvline(seconds[-1], color="0.7", linestyle=":" if number < 3 else "none")
    top.set_ylabel("resident memory, MiB")
    top.set_ylim(bottom=0)
    top.legend(loc="lower right")
    bottom.set_ylabel("images in finished shards")
    bottom.set_xlabel("seconds (dotted: killed)")
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--plot", type=Path, help="draw memory and progress to this PNG")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")
    args = parser.parse_args()

    sys.path.insert(0, str(TESTS))
    import cheap

    with tempfile.TemporaryDirectory() as folder:
        images, out = Path(folder) / "images", Path(folder) / "out"
        broken = cheap.draw(images, args.images)
        call = [sys.executable, str(TESTS / "cheap.py"), str(images), str(out)]
        call += ["--shard", str(SHARD), "--processes", str(args.processes)]
        shards = -(-args.images // SHARD)
        samples: list[dict[str, float]] = []
        begin = time.monotonic()
        codes = [leg(call, out, at, samples, begin) for at in (shards // 3, 2 * shards // 3, None)]
        seconds = time.monotonic() - begin
        result: dict[str, Any] = {
            "machine": machine(),
            "images": args.images,
            "processes": args.processes,
            "exit_codes": codes,
            **check(out, args.images, broken),
            **flatness(samples),
            "images_per_second": round(args.images / seconds, 1),
        }
    if args.plot:
        plot(args.plot, samples)
    if args.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:22s}{value}")


if __name__ == "__main__":
    main()
