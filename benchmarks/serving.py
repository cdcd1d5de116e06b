"""`vlseg serve` under load, against a plain server that answers one request at a time; every answer is checked.

    python benchmarks/serving.py [--requests 160] [--clients 32] [--rounds 2] [--soak 5000] [--json]

Two workloads: "shared", where the clients ask about 8 images over and over, and "distinct", where every request brings
an image of its own. Three servers, each a process of its own: "plain" is what a user writes in ten lines (FastAPI, a
lock, one call a request); "packing" is `vlseg serve --cache 0`; "serve" is `vlseg serve` as it comes. Rounds alternate.
Every response is compared with the direct call of `Segmenter`. --soak sends that many requests to one server whose
cache is too small for their images, and watches its memory. All of it goes to 127.0.0.1, and ends by itself.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from timing import machine

SHARED_IMAGES, QUERIES_AN_IMAGE, QUERIES_A_REQUEST = 8, 8, 3
SIZE = (480, 640)
LONGEST = 600.0  # seconds of one run of a workload; what is not asked by then is not asked
SERVERS = {"plain": None, "packing": ["--cache", "0"], "serve": []}
SCORE_TOLERANCE, PIXEL_TOLERANCE = 1e-4, 1e-3


@dataclass(frozen=True)
class Request:
    image: int
    texts: tuple[str, ...]


@dataclass
class Done:
    request: Request
    seconds: float
    status: int
    body: bytes


class Images:
    """Drawn scenes as PNG files, made when they are first asked for, with words about them."""

    def __init__(self, size: tuple[int, int]):
        from vlseg.worlds.sprites import SpriteWorld

        self.world, self.size = SpriteWorld(styles="train"), size
        self.files: dict[int, bytes] = {}
        self.words: dict[int, list[str]] = {}

    def file(self, index: int) -> bytes:
        if index not in self.files:
            from PIL import Image

            scene = self.world.scene(5, index, self.size, QUERIES_AN_IMAGE)
            file = io.BytesIO()
            Image.fromarray(np.asarray(scene.image)).save(file, "PNG", compress_level=1)
            self.files[index], self.words[index] = file.getvalue(), [query.text for query in scene.queries]
        return self.files[index]

    def request(self, index: int, number: int) -> Request:
        self.file(index)
        chance = np.random.default_rng((index, number))
        count = int(chance.integers(1, QUERIES_A_REQUEST + 1))
        return Request(index, tuple(map(str, chance.choice(self.words[index], count))))


@contextmanager
def server(kind: str, model: str | None, more: list[str] | None = None) -> Iterator[tuple[int, int]]:
    """(port, process id) of a running server."""
    options = SERVERS[kind]
    if options is None:
        command = [str(Path(__file__).with_name("plain_server.py")), *([model] if model else [])]
    else:
        command = ["-m", "vlseg.cli", "serve", "--port", "0", "--quiet", *options, *(more or [])]
        command += ["--model", model] if model else []
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if not found:
            raise SystemExit(f"{kind}: {line}{process.stderr.read()}")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield int(found[1]), process.pid
    finally:
        process.terminate()
        process.wait(60)


def load(port: int, requests: list[Request], images: Images, clients: int) -> tuple[list[Done], float]:
    """All requests by `clients` threads, each asking as soon as it has its answer; and the seconds it took."""
    waiting, done, lock = iter(requests), [], threading.Lock()
    end = time.monotonic() + LONGEST

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while time.monotonic() < end:
            with lock:
                request = next(waiting, None)
            if request is None:
                break
            body, headers = form(images.file(request.image), request.texts)
            start = time.perf_counter()
            connection.request("POST", "/v1/segment", body, headers)
            response = connection.getresponse()
            data = response.read()
            done.append(Done(request, time.perf_counter() - start, response.status, data))
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done, time.perf_counter() - start


def form(data: bytes, texts: tuple[str, ...]) -> tuple[bytes, dict[str, str]]:
    mark = "vlsegvlsegvlseg"
    part = f'--{mark}\r\nContent-Disposition: form-data; name="'
    words = "".join(f'{part}query"\r\n\r\n{text}\r\n' for text in texts)
    head = f'{words}{part}file"; filename="x.png"\r\n\r\n'.encode()
    return head + data + f"\r\n--{mark}--\r\n".encode(), {"Content-Type": f"multipart/form-data; boundary={mark}"}


class Judge:
    """Compares responses with direct calls. differ: the most pixels in which a right mask differed, as a share."""

    def __init__(self, segmenter: Any, images: Images):
        self.segmenter, self.images = segmenter, images
        self.known: dict[tuple[int, str], Any] = {}
        self.wrong = self.checked = 0
        self.differ = 0.0

    def direct(self, image: int, text: str) -> Any:
        key = (image, text)
        if key not in self.known:
            from PIL import Image

            self.known[key] = self.segmenter(Image.open(io.BytesIO(self.images.file(image))), text)[0]
        return self.known[key]

    def check(self, done: list[Done]) -> None:
        from vlseg.types import Result

        for one in done:
            if one.status != 200:
                raise SystemExit(f"a server answers {one.status}: {one.body[:300].decode()}")
            result = Result.from_dict(json.loads(one.body))
            self.checked += 1
            good = [a.text for a in result] == list(one.request.texts)
            good &= all(self.same(a, self.direct(one.request.image, a.text)) for a in result)
            self.wrong += not good

    def same(self, answer: Any, expected: Any) -> bool:
        if abs(answer.score - expected.score) > SCORE_TOLERANCE:
            return False
        if answer.status != expected.status:  # only where rounding decides
            return abs(expected.score - self.segmenter.system.presence_threshold) < SCORE_TOLERANCE
        share = float((answer.mask != expected.mask).mean())
        if share <= PIXEL_TOLERANCE:
            self.differ = max(self.differ, share)
        return share <= PIXEL_TOLERANCE


def resident(pid: int) -> int:
    """MiB of memory of a process (Linux)."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) >> 10 for line in file if line.startswith("VmRSS"))


def processor_seconds(pid: int) -> float:
    """Seconds of processor time that a process has used (Linux); tells more than the clock on a busy machine."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def soak(count: int, args: argparse.Namespace, judge_segmenter: Any) -> dict[str, Any]:
    """Memory of one server over `count` requests, in 20 parts; more images than its cache holds."""
    images = Images((240, 320))
    judge = Judge(judge_segmenter, images)
    with server("serve", args.model, ["--cache", "32"]) as (port, pid):
        memory = []
        for part in range(20):
            numbers = range(part * count // 20, (part + 1) * count // 20)
            done, _ = load(port, [images.request(n % 97, n // 97 % 5) for n in numbers], images, args.clients)
            memory.append(resident(pid))
            judge.check(done)
    return {"requests": count, "rss_mib": memory, "wrong": judge.wrong, "checked": judge.checked}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="a checkpoint folder (default: the embedded model)")
    parser.add_argument("--requests", type=int, default=160, help="of a workload and round")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="also watch the memory over N requests")
    parser.add_argument("--only-soak", action="store_true", help="no comparison of servers")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")
    args = parser.parse_args()

    from vlseg import Segmenter

    images, segmenter = Images(SIZE), Segmenter(args.model, device="cpu")
    judge = Judge(segmenter, images)
    result: dict[str, Any] = {
        "machine": {**machine(), "threads": os.environ.get("OMP_NUM_THREADS", "all")},
        "clients": args.clients,
        "workloads": {},
    }
    if not args.only_soak:
        result["workloads"] = compare(args, images, judge)
        result["wrong"], result["checked"] = judge.wrong, judge.checked
        result["largest_share_of_pixels_that_differ"] = round(judge.differ, 7)
    if args.soak:
        result["soak"] = soak(args.soak, args, segmenter)
    print(json.dumps(result)) if args.json else table(result)
    if judge.wrong or result.get("soak", {}).get("wrong"):
        raise SystemExit("wrong answers")


def compare(args: argparse.Namespace, images: Images, judge: Judge) -> dict[str, Any]:
    """Requests a second and waiting times of every server under both workloads."""
    count = args.requests
    work = {
        "shared": [images.request(n % SHARED_IMAGES, n) for n in range(count)],
        "distinct": [images.request(100 + n, n) for n in range(count)],
    }
    waits: dict[tuple[str, str], list[float]] = {}
    spent: dict[tuple[str, str], list[float]] = {}
    rates: dict[tuple[str, str], list[float]] = {}
    for number in range(args.rounds):
        for kind in list(SERVERS)[:: 1 if number % 2 == 0 else -1]:
            answered: list[Done] = []
            with server(kind, args.model) as (port, pid):  # a fresh one: its cache knows nothing
                for name, requests in work.items():
                    before = processor_seconds(pid)
                    done, wall = load(port, requests, images, args.clients)
                    answered += done
                    spent.setdefault((name, kind), []).append((processor_seconds(pid) - before) / len(done))
                    rates.setdefault((name, kind), []).append(len(done) / wall)
                    waits.setdefault((name, kind), []).extend(one.seconds for one in done)
            judge.check(answered)
    out: dict[str, Any] = {}
    for (name, kind), rate in rates.items():
        p50, p95, p99 = np.percentile(waits[name, kind], (50, 95, 99))
        over = [a / b for a, b in zip(rate, rates[name, "plain"], strict=True)]
        out.setdefault(name, {})[kind] = {
            "requests_per_s": round(statistics.median(rate), 1),
            "over_plain": round(statistics.median(over), 2),
            "cpu_ms_a_request": round(1e3 * statistics.median(spent[name, kind]), 1),
            "p50_ms": round(1e3 * p50),
            "p95_ms": round(1e3 * p95),
            "p99_ms": round(1e3 * p99),
        }
    return out


def table(result: dict[str, Any]) -> None:
    """The same for people."""
    print("  ".join(f"{k}={v}" for k, v in result["machine"].items()), f" clients={result['clients']}")
    for name, kinds in result["workloads"].items():
        for kind, row in kinds.items():
            speed = f"{row['requests_per_s']:8.1f} requests/s {row['over_plain']:6.2f} x plain"
            waits = f"p50 {row['p50_ms']:6d}  p95 {row['p95_ms']:6d}  p99 {row['p99_ms']:6d} ms"
            print(f"{name:10s}{kind:9s}{speed}   cpu {row['cpu_ms_a_request']:6.1f} ms   {waits}")
    if "checked" in result:
        print(f"{result['checked']} responses compared with the direct call: {result['wrong']} wrong; ", end="")
        print(f"masks differ in {100 * result['largest_share_of_pixels_that_differ']:.4f} % of the pixels at most")
    if "soak" in result:
        soaked = result["soak"]
        print(f"soak: {soaked['requests']} requests, {soaked['wrong']} wrong, RSS in MiB {soaked['rss_mib']}")


if __name__ == "__main__":
    main()
