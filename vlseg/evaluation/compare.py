"""Two reports on the same cases: paired differences with intervals, and the cases that changed hands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlseg.data.files import write_whole
from vlseg.evaluation.batch import Record
from vlseg.evaluation.markdown import cell
from vlseg.evaluation.report import read_report
from vlseg.evaluation.samples import read_samples
from vlseg.metrics.bootstrap import RESAMPLES, paired_differences
from vlseg.metrics.case import Case
from vlseg.types import VLSegError

NAME = "compare.json"
SHOWN = 20  # cases a direction in compare.md
# What must be the same in both reports for their scores to be of one kind.
RULES = ("rules", "boundary_dilation_ratio", "buffer_radius_px")


def compare(a: Path, b: Path, seed: int = 0) -> dict[str, Any]:
    """The comparison of the reports in two folders as plain data; differences are B minus A.

    A case has changed hands where one side is right and the other is not: IoU > 0.5, or a true rejection. Raises
    VLSegError where the reports are not over the same cases, or not by the same rules.
    """
    reports = [read_report(folder) for folder in (a, b)]
    protocols = [report["protocol"] for report in reports]
    if reports[0]["hashes"]["cases"] != reports[1]["hashes"]["cases"]:
        told = [
            f"{p['data']} {p['split']}".strip() + f" ({r['cases']} cases)"
            for p, r in zip(protocols, reports, strict=True)
        ]
        raise VLSegError(
            f"--compare: {a} is over {told[0]}, {b} over {told[1]}, or their truth differs: not the same cases"
        )
    for rule in RULES:
        if protocols[0].get(rule) != protocols[1].get(rule):
            name = rule.replace("_", " ")
            raise VLSegError(
                f"--compare: the reports differ in {name}: {protocols[0].get(rule)}, {protocols[1].get(rule)}"
            )
    records = [read_samples(folder) for folder in (a, b)]
    cases = [[record.case for record in side] for side in records]
    if [case.id for case in cases[0]] != [case.id for case in cases[1]]:
        raise VLSegError(f"--compare: the samples of {a} and {b} are not of the same cases; evaluate anew")
    changed = [_changed(x, y) for x, y in zip(*records, strict=True) if right(x.case) != right(y.case)]
    return {
        "a": {"folder": str(a), **_who(reports[0])},
        "b": {"folder": str(b), **_who(reports[1])},
        "cases": len(cases[0]),
        "images": len({case.image for case in cases[0]}),
        "intervals": f"95 % paired percentile bootstrap over images, {RESAMPLES} resamples, seed {seed}",
        "deviations": [*protocols[0]["deviations"], *protocols[1]["deviations"]],
        "metrics": paired_differences(cases[0], cases[1], seed=seed),
        "won": sum(entry["to"] == "b" for entry in changed),
        "lost": sum(entry["to"] == "a" for entry in changed),
        "changed": sorted(changed, key=lambda entry: -abs(entry["b"]["iou"] - entry["a"]["iou"])),
    }


def right(case: Case) -> bool:
    """The case counts as solved: IoU > 0.5; where nothing matches, answered "absent"."""
    return case.status == "absent" if case.absent else case.iou > 0.5


def write_comparison(folder: Path, comparison: Mapping[str, Any]) -> None:
    """Write `compare.json` and `compare.md`, each whole or not at all."""
    write_whole(folder / "compare.md", markdown(comparison))
    write_whole(folder / NAME, json.dumps(comparison, ensure_ascii=False, indent=1) + "\n")


def markdown(comparison: Mapping[str, Any]) -> str:
    """The comparison for people."""
    a, b = comparison["a"], comparison["b"]
    lines = [f"# B: {cell(b['model'])} against A: {cell(a['model'])}", ""]
    for deviation in comparison["deviations"]:
        lines += [f'> <span style="color:red">**Not by the protocol**: {cell(deviation)}</span>', ""]
    lines += [f"{cell(a['data'])}: {comparison['cases']} cases on {comparison['images']} images; "
              f"{comparison['intervals']}.", ""]  # fmt: skip
    lines += ["| | A | B | B - A | 95 % interval | |", "|---|---|---|---|---|---|"]
    for name, entry in comparison["metrics"].items():
        low, high = entry["ci95"]
        numbers = f"{entry['a']:.4f} | {entry['b']:.4f} | {entry['difference']:+.4f} | {low:+.4f} to {high:+.4f}"
        lines.append(f"| {name} | {numbers} | {verdict(entry)} |")
    lines += [
        "",
        f"Cases that changed hands: B alone is right in {comparison['won']}, A alone in {comparison['lost']}.",
    ]
    for side, title in (("b", "Won by B"), ("a", "Lost by B")):
        entries = [entry for entry in comparison["changed"] if entry["to"] == side]
        if entries:
            lines += [
                "",
                f"## {title}",
                "",
                "| case | words | A | B |",
                "|---|---|---|---|",
                *map(_line, entries[:SHOWN]),
            ]
            if len(entries) > SHOWN:
                lines.append(f"\n{len(entries) - SHOWN} more are in {NAME}.")
    return "\n".join([*lines, ""])


def console(comparison: Mapping[str, Any]) -> str:
    """What the command line prints."""
    lines = [f"A: {comparison['a']['model']}; B: {comparison['b']['model']}; {comparison['cases']} cases"]
    width = max(map(len, comparison["metrics"]), default=0)
    for name, entry in comparison["metrics"].items():
        low, high = entry["ci95"]
        numbers = f"{entry['a']:.4f}  {entry['b']:.4f}  {entry['difference']:+.4f} ({low:+.4f} to {high:+.4f})"
        lines.append(f"{name:<{width}}  {numbers}  {verdict(entry)}".rstrip())
    return "\n".join([*lines, f"changed hands: {comparison['won']} to B, {comparison['lost']} to A"])


def verdict(entry: Mapping[str, Any]) -> str:
    """Whether the interval of a difference leaves 0 out."""
    low, high = entry["ci95"]
    return "B is higher" if low > 0 else "B is lower" if high < 0 else ""


def _who(report: Mapping[str, Any]) -> dict[str, Any]:
    protocol = report["protocol"]
    data = f"{protocol['data']} {protocol['split']}".strip()
    return {"model": protocol["model"], "answers": protocol["answers"], "data": data, "hashes": report["hashes"]}


def _changed(a: Record, b: Record) -> dict[str, Any]:
    sides = {
        name: {"status": case.status, "score": case.score, "iou": round(case.iou, 6)}
        for name, case in (("a", a.case), ("b", b.case))
    }
    to = "b" if right(b.case) else "a"
    return {"id": a.case.id, "image": a.case.image, "text": a.case.text, "to": to, **sides}


def _line(entry: Mapping[str, Any]) -> str:
    def told(side: Mapping[str, Any]) -> str:
        return f"{side['status']}, IoU {side['iou']:.2f}"

    return f"| {cell(entry['id'])} | {cell(entry['text'])} | {told(entry['a'])} | {told(entry['b'])} |"
