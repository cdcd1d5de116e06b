"""`report.json`: the scores of a run with the protocol that they hold under (contract: DESIGN.md, 4.6)."""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from vlseg.data.dataset import Dataset
from vlseg.data.files import write_whole
from vlseg.evaluation.batch import Record
from vlseg.evaluation.predictor import Predictor
from vlseg.evaluation.ranks import ALONE, Ranks
from vlseg.evaluation.run import Outcome, Settings
from vlseg.evaluation.slices import slices
from vlseg.metrics.bootstrap import RESAMPLES, with_intervals
from vlseg.metrics.calibration import BINS
from vlseg.metrics.case import Case
from vlseg.metrics.cost import peak_memory, percentiles
from vlseg.types import VLSegError
from vlseg.version import __version__

NAME = "report.json"
PACKAGES = ("torch", "transformers", "numpy", "pycocotools", "pillow")
NAMED = 100  # failures and the like that a report names; the rest is in samples.parquet


def build_report(
    outcome: Outcome,
    dataset: Dataset,
    predictor: Predictor,
    settings: Settings,
    baselines: Mapping[str, Outcome] = {},
    ranks: Ranks = ALONE,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The report as plain data. All of it but "times" is the same on any number of processes.

    baselines: outcomes of others over the same cases, for comparison. notes: what else a reader must know.
    """
    cases = [record.case for record in outcome.records]
    metrics = with_intervals(cases, seed=settings.seed)
    report: dict[str, Any] = {
        "protocol": _protocol(dataset, predictor, settings),
        "cases": len(cases),
        "metrics": _plain(metrics),
        "slices": {name: _slice(part, settings.seed) for name, part in slices(cases).items()},
        "baselines": {
            name: _plain(with_intervals([record.case for record in other.records], seed=settings.seed))
            for name, other in baselines.items()
        },
        "counts": _counts(outcome, dataset, {name: entry["cases"] for name, entry in metrics.items()}),
        "failures": [f"{case.id} ({case.text}): {case.reason}" for case in cases if case.status == "failed"][:NAMED],
        "left_out": [*(f"{p.where}: {p.what}" for p in dataset.problems), *outcome.left_out][:NAMED],
        "notes": [*getattr(dataset, "notes", []), *notes],
        "hashes": {
            "data": dataset.fingerprint,
            "cases": hash_of_cases(outcome.records),
            "predictions": hash_of_predictions(outcome.records),
        },
        "versions": versions(),
    }
    report["times"] = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "processes": ranks.world,
        "image": percentiles(outcome.seconds),
        "queries_per_second": outcome.queries_per_second and round(outcome.queries_per_second, 3),
        "peak_memory_mib": peak_memory(),
    }
    return report


def _protocol(dataset: Dataset, predictor: Predictor, settings: Settings) -> dict[str, Any]:
    return {
        "model": predictor.name,
        "mode": predictor.mode,
        "answers": predictor.protocol,
        "data": dataset.name,
        "split": dataset.split,
        "limit": settings.limit,
        "batch": settings.batch,
        "seed": settings.seed,
        "compute": settings.compute,
        "deviations": predictor.deviations,
        "case": "every (image, expression), at the image's original size",
        "rules": "cIoU = sum I / sum U; mIoU over targets; P@t: IoU > t; no target: ReLA's table; ignored pixels: LISA",
        "raster": "COCO (pycocotools); masks are compared as run lengths",
        "boundary_dilation_ratio": settings.rules.boundary_ratio,
        "buffer_radius_px": settings.rules.radius,
        "activation": "of masks (p is 0 or 1); cases with a target and a distractor",
        "calibration_bins": BINS,
        "intervals": f"95 % percentile bootstrap over images, {RESAMPLES} resamples",
    }


def _slice(cases: Sequence[Case], seed: int) -> dict[str, Any]:
    return {"cases": len(cases), "metrics": _plain(with_intervals(cases, seed=seed, ranking=False))}


def _plain(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {name: {"value": entry["value"], "ci95": entry["ci95"]} for name, entry in metrics.items()}


def _counts(outcome: Outcome, dataset: Dataset, by_metric: Mapping[str, int]) -> dict[str, Any]:
    cases = [record.case for record in outcome.records]
    statuses = Counter(case.status for case in cases)
    return {
        "images": len({case.image for case in cases}),
        "cases": len(cases),
        "present": sum(not case.absent for case in cases),
        "absent": sum(case.absent for case in cases),
        "answered found": statuses["found"],
        "answered absent": statuses["absent"],
        "failed": statuses["failed"],
        "failed by an error": sum(record.crashed for record in outcome.records),
        "unlabelled queries skipped": outcome.unlabelled,
        "left out": len(dataset.problems) + len(outcome.left_out),
        "by metric": dict(by_metric),
    }


def hash_of_cases(records: Sequence[Record]) -> str:
    """SHA-256 of what was asked and what is true, in order: two reports with the same are over the same cases."""
    return _hash([r.case.id, r.case.text, r.case.absent, r.case.ignored, r.truth["size"], r.truth["counts"]]
                 for r in records)  # fmt: skip


def hash_of_predictions(records: Sequence[Record]) -> str:
    """SHA-256 of all answers, in order."""
    return _hash([r.case.id, r.case.status, r.case.score, r.prediction["counts"]] for r in records)


def _hash(rows: Any) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Of vlseg, Python and the libraries whose numbers a score depends on."""
    found = {"vlseg": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_report(folder: Path, report: Mapping[str, Any]) -> Path:
    """Write `report.json`, whole or not at all."""
    write_whole(folder / NAME, json.dumps(report, ensure_ascii=False, indent=1) + "\n")
    return folder / NAME


def read_report(folder: Path) -> dict[str, Any]:
    """The report in a folder. Raises VLSegError where there is none, or what is there is none."""
    file = folder / NAME
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise VLSegError(f"{file}: not there; name the folder that `vlseg eval --out` has written") from error
    except (OSError, ValueError) as error:
        raise VLSegError(f"{file}: cannot be read ({error})") from error
    if not isinstance(report, dict) or not {"protocol", "metrics", "hashes"} <= report.keys():
        raise VLSegError(f"{file}: not a report of `vlseg eval`")
    return report
