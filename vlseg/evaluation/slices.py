"""Parts of a set of cases that are scored on their own: by presence, size, length, distractors and kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vlseg.metrics.case import Case

# (largest value, label) in order. Areas: COCO's bounds of small and medium objects, in pixels of the truth.
AREAS = ((32**2 - 1, "small (< 32² px)"), (96**2 - 1, "medium (< 96² px)"), (float("inf"), "large"))
WORDS = ((2, "1-2 words"), (5, "3-5 words"), (9, "6-9 words"), (float("inf"), "10 words or more"))
RIVALS = ((0, "none"), (1, "1"), (4, "2-4"), (float("inf"), "5 or more"))

Label = tuple[int, str]  # place among its group's labels, and the label


def _among(value: float, bounds: Sequence[tuple[float, str]]) -> Label:
    return next((place, label) for place, (most, label) in enumerate(bounds) if value <= most)


# What part of each group a case belongs to; None for none.
GROUPS: dict[str, Callable[[Case], Label | None]] = {
    "presence": lambda case: (1, "absent") if case.absent else (0, "present"),
    "size": lambda case: None if case.absent else _among(case.area, AREAS),
    "length": lambda case: _among(len(case.text.split()), WORDS),
    "distractors": lambda case: None if case.absent else _among(case.distractors, RIVALS),
    "kind": lambda case: (0, case.kind) if case.kind else None,
}


def slices(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """Cases by slice, named "group: label", in order; a group whose cases all bear one label is left out."""
    found: dict[str, list[Case]] = {}
    for group, label_of in GROUPS.items():
        parts: dict[Label, list[Case]] = {}
        for case in cases:
            label = label_of(case)
            if label is not None:
                parts.setdefault(label, []).append(case)
        if len(parts) > 1:
            found |= {f"{group}: {label[1]}": parts[label] for label in sorted(parts)}
    return found
