"""`report.md`: a report for people; also the table that the command line prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlseg.data.files import write_whole

NAME = "report.md"
SLICED = ("mIoU", "cIoU", "P@0.5", "boundary-IoU", "T-acc", "N-acc", "wrong-instance")
COMPARED = ("mIoU", "cIoU", "P@0.5", "gIoU", "N-acc", "boundary-IoU", "wrong-instance")
SHOWN = 20  # failures


def write_markdown(folder: Path, report: Mapping[str, Any]) -> Path:
    """Write `report.md`, whole or not at all."""
    write_whole(folder / NAME, markdown(report))
    return folder / NAME


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report."""
    protocol, counts = report["protocol"], report["counts"]
    split = f", split {cell(protocol['split'])}" if protocol["split"] else ""
    lines = [f"# {cell(protocol['model'])} on {cell(protocol['data'])}{split}", ""]
    for deviation in protocol["deviations"]:
        lines += [f'> <span style="color:red">**Not by the protocol**: {cell(deviation)}</span>', ""]
    lines += [f"{report['cases']} cases on {counts['images']} images; {present(counts)}.", ""]
    lines += ["| | value | 95 % interval | cases |", "|---|---|---|---|"]
    for name, entry in report["metrics"].items():
        low, high = entry["ci95"]
        lines.append(f"| {name} | {entry['value']:.4f} | {low:.4f} to {high:.4f} | {counts['by metric'][name]} |")
    if report["baselines"]:
        rows = {protocol["model"]: report["metrics"], **report["baselines"]}
        lines += ["", "## Baselines", "", *_table(rows, COMPARED)]
    if report["slices"]:
        rows = {f"{name} ({part['cases']})": part["metrics"] for name, part in report["slices"].items()}
        lines += ["", "## Slices (cases)", "", *_table(rows, SLICED)]
    for title, key, number in (
        ("Failed", "failures", counts["failed"]),
        ("Left out", "left_out", counts["left out"]),
    ):
        if report[key]:
            lines += ["", f"## {title}", "", *(f"- {cell(line)}" for line in report[key][:SHOWN])]
            if number > SHOWN:
                lines.append(f"- and {number - SHOWN} more")
    if report["notes"]:
        lines += ["", "## Notes", "", *(f"- {cell(note)}" for note in report["notes"])]
    lines += ["", "## Protocol", "", "| | |", "|---|---|"]
    lines += [
        f"| {name.replace('_', ' ')} | {cell(value)} |" for name, value in protocol.items() if value not in ([], "")
    ]
    lines += [f"| SHA-256 of {name} | {value} |" for name, value in report["hashes"].items()]
    lines.append(f"| versions | {', '.join(f'{name} {version}' for name, version in report['versions'].items())} |")
    lines += ["", "## Cost", "", *(f"- {line}" for line in cost(report["times"])), ""]
    return "\n".join(lines)


def present(counts: Mapping[str, Any]) -> str:
    """How the cases divide, in words."""
    parts = [f"{counts['present']} with a target, {counts['absent']} without"]
    parts.append(f"{counts['failed']} failed")
    if counts["unlabelled queries skipped"]:
        parts.append(f"{counts['unlabelled queries skipped']} unlabelled queries skipped")
    if counts["left out"]:
        parts.append(f"{counts['left out']} records left out")
    return "; ".join(parts)


def cost(times: Mapping[str, Any]) -> list[str]:
    """Times and memory, a line each; the first batch of each process is not timed."""
    lines = [f"processes: {times['processes']}"]
    if times["image"]:
        lines.append(
            f"an image, all its queries: {times['image']['p50_ms']} ms (p50), {times['image']['p95_ms']} ms (p95)"
        )
        lines.append(f"queries per second and process: {times['queries_per_second']}")
    lines += [f"peak memory, {name}: {value} MiB" for name, value in times["peak_memory_mib"].items()]
    return lines


def console(report: Mapping[str, Any]) -> str:
    """What the command line prints: the scores in columns."""
    width = max(map(len, report["metrics"]), default=0)
    lines = [f"{report['cases']} cases on {report['counts']['images']} images; {present(report['counts'])}"]
    for name, entry in report["metrics"].items():
        low, high = entry["ci95"]
        lines.append(f"{name:<{width}}  {entry['value']:.4f}  ({low:.4f} to {high:.4f})")
    for name, metrics in report["baselines"].items():
        shown = "  ".join(f"{m} {metrics[m]['value']:.4f}" for m in ("mIoU", "cIoU", "P@0.5") if m in metrics)
        lines.append(f"{name}  {shown}")
    return "\n".join(lines)


def _table(rows: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    columns = [name for name in names if any(name in row for row in rows.values())]
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for title, row in rows.items():
        lines.append(f"| {cell(title)} | " + " | ".join(score(row.get(name)) for name in columns) + " |")
    return lines


def score(entry: Mapping[str, Any] | None) -> str:
    """A value with its interval; empty where there is none."""
    if entry is None:
        return ""
    return f"{entry['value']:.3f} ({entry['ci95'][0]:.3f} to {entry['ci95'][1]:.3f})"


def cell(value: Any) -> str:
    """Any text on one line of a Markdown table; nothing in it is taken for markup."""
    text = " ".join(str(value).split())
    for character in "\\`*_[]<>|":
        text = text.replace(character, {"<": "&lt;", ">": "&gt;"}.get(character, "\\" + character))
    return text
