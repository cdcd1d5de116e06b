"""The twelve COCO scores that pycocotools publishes for its example, from masks as our loaders give them."""

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vlseg.data.registry import open_dataset
from vlseg.evaluation.predictions import read_predictions
from vlseg.masks import rle as codec
from vlseg.metrics.overlap import overlaps

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco-results"
TRUTH, PREDICTED = "instances_val2014_100.json", "instances_val2014_fakesegm100_results.json"


@pytest.fixture(scope="module")
def coco():
    """(truth, predictions) as COCO objects, every mask as our data set and our reader of predictions give it."""
    if not FOLDER.is_dir():
        pytest.skip(f"{FOLDER} is not there: COCO's example results")
    dataset = open_dataset(str(FOLDER / TRUTH), pictures=False)
    assert dataset.problems == []
    masks = {query.id: list(query.masks) for n in range(len(dataset)) for query in dataset[n].queries}
    truth = COCO()
    truth.dataset = json.loads((FOLDER / TRUTH).read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth.dataset["images"]}
    for annotation in truth.dataset["annotations"]:
        size = sizes[annotation["image_id"]]
        if annotation["iscrowd"]:  # the data set joins crowds into ignored pixels
            annotation["segmentation"] = codec.from_coco(annotation["segmentation"], *size)
        else:
            annotation["segmentation"] = masks[f"coco:{annotation['image_id']}:{annotation['category_id']}"].pop(0)
    assert not any(masks.values())
    predicted = [
        {**entry, "segmentation": codec.from_coco(entry["segmentation"], *sizes[entry["image_id"]])}
        for entry in read_predictions(FOLDER / PREDICTED)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        return truth, truth.loadRes(predicted)


def test_the_twelve_published_scores(coco):
    truth, predicted = coco
    assert (len(truth.getAnnIds()), len(predicted.getAnnIds())) == (839, 734)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, predicted, "segm")
        evaluation.params.imgIds = sorted(truth.getImgIds())
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    text = (FOLDER / "val2014_fake_eval_res.txt").read_text()
    part = text[text.index("type=segm") :]
    published = [float(number) for number in re.findall(r"= (\d\.\d{3})$", part, re.MULTILINE)[:12]]
    assert len(published) == 12
    assert published[0] == 0.32
    assert np.round(evaluation.stats, 3).tolist() == published


def test_our_counts_are_those_behind_them(coco):
    """IoU of every pair of one category on one image, as COCO's evaluation computes it."""
    truth, predicted = coco
    pairs = [
        (d["segmentation"], g["segmentation"])
        for d in predicted.dataset["annotations"]
        for g in truth.dataset["annotations"]
        if (d["image_id"], d["category_id"]) == (g["image_id"], g["category_id"]) and not g["iscrowd"]
    ]
    assert len(pairs) > 1000
    inside, union = overlaps(*zip(*pairs, strict=True))
    want = np.array([codec.iou([d], [g])[0, 0] for d, g in pairs])
    assert ((want > 0.05) & (want < 0.95)).sum() > 500
    assert inside / union == pytest.approx(want, abs=1e-12)
