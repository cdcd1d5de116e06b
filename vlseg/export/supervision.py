"""Results as `supervision.Detections`, to be annotated, tracked, filtered and counted with that library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vlseg.masks import rle as codec
from vlseg.types import Result, VLSegError

if TYPE_CHECKING:
    import supervision


def to_supervision(result: Result, min_score: float = 0.0) -> supervision.Detections:
    """All segments of a Result, N of them, as `supervision.Detections`.

    xyxy: ``(N, 4) float32`` in pixels; mask: ``(N, H, W) bool``; confidence: the segments' scores; class_id: number of
    the query in the Result; data: `class_name`, its text, and `rle_masks`, the COCO RLEs. min_score: leaves segments
    of a lower score out. Raises VLSegError where supervision is not installed.
    """
    try:
        from supervision import Detections
    except ImportError as error:
        raise VLSegError("supervision is not installed; pip install 'vlseg[export]'") from error
    found = [(k, s) for k, answer in enumerate(result.answers) for s in answer.segments if s.score >= min_score]
    boxes = np.array([segment.bbox for _, segment in found], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = np.zeros((len(found), *result.size), dtype=bool)
    rles = np.empty(len(found), dtype=object)
    for number, (_, segment) in enumerate(found):
        masks[number] = codec.decode(segment.rle)
        rles[number] = dict(segment.rle)
    return Detections(
        xyxy=boxes,
        mask=masks,
        confidence=np.array([segment.score for _, segment in found], dtype=np.float32),
        class_id=np.array([k for k, _ in found], dtype=int),
        data={"class_name": np.array([result.answers[k].text for k, _ in found], dtype=str), "rle_masks": rles},
    )
