"""What is written is read back by the libraries that it is written for, and the masks are the same."""

from __future__ import annotations

import contextlib
import io
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from results_made import iou, make_results, masks_of, write_lines

from vlseg.export.kinds import Options, export_results
from vlseg.export.source import Results
from vlseg.masks.svg import path_to_mask
from vlseg.types import Result, VLSegError


@pytest.fixture
def made(tmp_path: Path) -> list[Result]:
    return make_results(tmp_path / "pictures")


@pytest.fixture
def source(made, tmp_path: Path) -> Results:
    return Results(write_lines(made, tmp_path / "results.jsonl"))


def coco_api(file: Path):
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(file))


@pytest.mark.parametrize("shape", ["polygons", "masks"])
def test_coco_reads_the_same_masks(made, source, tmp_path, shape):
    coco = coco_api(export_results("coco", source, tmp_path / "out", Options(shape)))
    assert [c["name"] for c in coco.dataset["categories"]] == list(source.categories)
    assert [c["id"] for c in coco.dataset["categories"]] == list(range(1, 8))
    for number, result in enumerate(made, 1):
        image = coco.loadImgs(number)[0]
        assert (image["file_name"], image["height"], image["width"]) == (result.image, *result.size)
        assert [coco.cats[k]["name"] for k in image["neg_category_ids"]] == ["the zebra"]
        assert [coco.cats[k]["name"] for k in image["not_exhaustive_category_ids"]] == ['é 右 "quoted"']
        annotations = coco.loadAnns(sorted(coco.getAnnIds(imgIds=number)))
        expected = masks_of(result)
        assert len(annotations) == len(expected) == 6
        for annotation, (text, mask) in zip(annotations, expected, strict=True):
            assert coco.cats[annotation["category_id"]]["name"] == text
            assert np.array_equal(coco.annToMask(annotation).astype(bool), mask)
            assert annotation["area"] == mask.sum()
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation["bbox"] == box
        assert [a["score"] for a in annotations] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.8, 0.3])


def test_coco_tolerance_takes_points_and_few_pixels(made, source, tmp_path):
    exact = coco_api(export_results("coco", source, tmp_path / "exact"))
    loose = coco_api(export_results("coco", source, tmp_path / "loose", Options(tolerance=1.5)))

    def points(coco):
        return sum(len(p) for a in coco.anns.values() for p in a["segmentation"]) / 2

    assert points(loose) < 0.5 * points(exact)
    for a, b in zip(exact.anns.values(), loose.anns.values(), strict=True):
        assert 0.9 < iou(exact.annToMask(a).astype(bool), loose.annToMask(b).astype(bool)) <= 1


def test_supervision_reads_coco(made, source, tmp_path):
    supervision = pytest.importorskip("supervision")
    file = export_results("coco", source, tmp_path / "out", Options("masks", copy_images=True))
    data = supervision.DetectionDataset.from_coco(str(tmp_path / "out" / "images"), str(file), force_masks=True)
    assert data.classes == list(source.categories)
    assert len(data) == len(made)
    for (path, image, found), result in zip(data, made, strict=True):
        assert Path(path).name == Path(result.image).name
        assert image.shape[:2] == result.size
        for mask, number, (text, expected) in zip(found.mask, found.class_id, masks_of(result), strict=True):
            assert data.classes[number] == text
            assert np.array_equal(mask, expected)


def test_supervision_reads_yolo(made, source, tmp_path):
    """Exact but for the line that joins two parts of an instance."""
    supervision = pytest.importorskip("supervision")
    file = export_results("yolo", source, tmp_path / "out", Options(copy_images=True))
    folders = tmp_path / "out" / "images" / "train", tmp_path / "out" / "labels" / "train"
    data = supervision.DetectionDataset.from_yolo(*map(str, folders), str(file), force_masks=True)
    assert data.classes == list(source.categories)
    assert len(data) == len(made)
    results = {Path(result.image).stem: result for result in made}
    for path, _, found in data:
        result = results[Path(path).stem]
        assert len(found) == 6
        for mask, number, (text, expected) in zip(found.mask, found.class_id, masks_of(result), strict=True):
            assert data.classes[number] == text
            assert not (expected & ~mask).any(), text
            if text in ("a pair & <more>", "ragged blocks"):
                assert iou(mask, expected) > 0.9, text
            else:
                assert np.array_equal(mask, expected), text


def test_label_studio_decodes_brush_masks(made, source, tmp_path):
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    tasks = json.loads(export_results("labelstudio", source, tmp_path / "out").read_text())
    assert [task["data"]["image"] for task in tasks] == [result.image for result in made]
    for task, result in zip(tasks, made, strict=True):
        assert task["data"]["absent"] == ["the zebra"]
        regions = task["predictions"][0]["result"]
        for region, (text, mask) in zip(regions, masks_of(result), strict=True):
            height, width = region["original_height"], region["original_width"]
            decoded = brush.decode_rle(region["value"]["rle"]).reshape(height, width, 4)
            assert np.array_equal(decoded[..., 3] > 0, mask)
            assert (decoded == decoded[..., :1]).all()
            assert region["value"]["brushlabels"] == [text]
        # and its own encoder writes the same bytes, but for what it pads a whole number of them with
        mask = masks_of(result)[0][1]
        theirs = brush.mask2rle(mask.astype(np.uint8) * 255)
        ours = regions[0]["value"]["rle"]
        assert ours == theirs[: len(ours)]
        assert not any(theirs[len(ours) :])
        ids = [region["id"] for region in regions]
        assert len(set(ids)) == len(ids)


def test_label_studio_takes_tasks_and_predictions(source, tmp_path):
    """Checked by the rules of the labelling interface that is written along."""
    interface = pytest.importorskip("label_studio_sdk.label_interface", exc_type=ImportError)
    for shape in ("masks", "polygons"):
        tasks = json.loads(export_results("labelstudio", source, tmp_path / shape, Options(shape)).read_text())
        config = interface.LabelInterface((tmp_path / shape / "config.xml").read_text())
        config.validate()
        for task in tasks:
            assert config.validate_prediction(task["predictions"][0])
            assert config.validate_task({"data": task["data"]})
        tasks[0]["predictions"][0]["result"][0]["value"] = {"nothing": 1}
        assert not config.validate_prediction(tasks[0]["predictions"][0])


def test_label_studio_polygons_are_percent(made, source, tmp_path):
    from pycocotools import mask as coco

    options = Options("polygons", image_prefix="/data/local-files/?d=")
    tasks = json.loads(export_results("labelstudio", source, tmp_path / "out", options).read_text())
    for task, result in zip(tasks, made, strict=True):
        assert task["data"]["image"] == f"/data/local-files/?d={result.image}"
        height, width = result.size
        union = {}
        for region in task["predictions"][0]["result"]:
            points = np.array(region["value"]["points"]) * (width / 100, height / 100)
            assert points.min() >= 0
            assert (points <= (width, height)).all()
            drawn = coco.decode(coco.frPyObjects([points.reshape(-1).tolist()], height, width))[..., 0] > 0
            text = region["value"]["polygonlabels"][0]
            union[text] = union.get(text, False) | drawn
        for answer in result.answers:
            if answer.segments:
                assert np.array_equal(union[answer.text], answer.mask)


def cvat_mask(element, size) -> np.ndarray:
    """By CVAT's documentation of its XML: run lengths, outside first, row by row within the box."""
    left, top, width, height = (int(element.get(key)) for key in ("left", "top", "width", "height"))
    runs = [int(run) for run in element.get("rle").split(", ")]
    inside = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = inside
    return mask


def test_cvat_masks_by_its_documentation(made, source, tmp_path):
    root = ElementTree.parse(export_results("cvat", source, tmp_path / "out")).getroot()
    assert root.findtext("version") == "1.1"
    names = [label.findtext("name") for label in root.iter("label")]
    assert names == list(source.categories)
    assert [label["name"] for label in json.loads((tmp_path / "out" / "labels.json").read_text())] == names
    for number, (image, result) in enumerate(zip(root.iter("image"), made, strict=True)):
        assert (image.get("id"), image.get("name")) == (str(number), result.image)
        for element, (text, mask) in zip(image.iter("mask"), masks_of(result), strict=True):
            assert element.get("label") == text
            assert np.array_equal(cvat_mask(element, result.size), mask)


def test_cvat_sdk_has_the_same_runs(made, source, tmp_path):
    masks = pytest.importorskip("cvat_sdk.masks")
    root = ElementTree.parse(export_results("cvat", source, tmp_path / "out")).getroot()
    for image, result in zip(root.iter("image"), made, strict=True):
        for element, (_, mask) in zip(image.iter("mask"), masks_of(result), strict=True):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            runs = [int(run) for run in element.get("rle").split(", ")]
            assert masks.encode_mask(mask, box)[:-4] == runs


@pytest.mark.parametrize("shape", ["masks", "polygons"])
def test_datumaro_reads_cvat(made, source, tmp_path, shape):
    datumaro = pytest.importorskip("datumaro")
    export_results("cvat", source, tmp_path / "out", Options(shape, copy_images=True))
    data = datumaro.Dataset.import_from(str(tmp_path / "out" / "annotations.xml"), "cvat")
    names = [label.name for label in data.categories()[datumaro.AnnotationType.label].items]
    assert names == list(source.categories)
    items = {item.id: item for item in data}
    assert len(items) == len(made)
    for result in made:
        found = items[Path(result.image).stem].annotations
        if shape == "masks":
            for annotation, (text, mask) in zip(found, masks_of(result), strict=True):
                assert names[annotation.label] == text
                assert np.array_equal(np.asarray(annotation.image).astype(bool), mask)
        else:
            area = sum(annotation.get_area() for annotation in found)
            assert area == pytest.approx(sum(mask.sum() for _, mask in masks_of(result)), rel=0.02)


def test_png_values_and_instances(made, source, tmp_path):
    labels = json.loads(export_results("png", source, tmp_path / "out").read_text())["labels"]
    assert [label["text"] for label in labels] == list(source.categories)
    lines = [json.loads(line) for line in (tmp_path / "out" / "instances.jsonl").read_text().splitlines()]
    for result in made:
        file = f"{Path(result.image).stem}.png"
        with Image.open(tmp_path / "out" / "masks" / file) as picture:
            assert picture.mode == "P"
            values = np.asarray(picture)
            palette = picture.getpalette()
        expected = np.zeros(result.size, int)
        texts = [label["text"] for label in labels]
        for text, mask in sorted(masks_of(result), key=lambda pair: -pair[1].sum()):
            expected[mask] = texts.index(text) + 1
        assert np.array_equal(values, expected)
        assert {value for value in np.unique(values)} <= {0, *(label["value"] for label in labels)}
        for label in labels:
            assert palette[3 * label["value"] : 3 * label["value"] + 3] == label["color"]
        mine = [line for line in lines if line["image"] == result.image]
        for line, (text, mask) in zip(mine, masks_of(result), strict=True):
            assert line["text"] == text
            with Image.open(tmp_path / "out" / "instances" / line["file"]) as picture:
                assert np.array_equal(np.asarray(picture) > 0, mask)


def test_png_of_many_categories_has_16_bits(tmp_path):
    result = make_results(tmp_path, 1)[0]
    answer = result.answers[0]
    for k in range(300):
        result.answers.append(type(answer)(f"query {k}", "absent", 0.0, result.size))
    result.answers.append(type(answer)("the last", "found", 0.9, result.size, segments=answer.segments))
    source = Results(write_lines([result], tmp_path / "r.jsonl"))
    export_results("png", source, tmp_path / "out")
    with Image.open(tmp_path / "out" / "masks" / "photo 0.png") as picture:
        assert picture.mode.startswith("I")
        assert int(np.asarray(picture).max()) == source.categories["the last"] + 1 == 308


def test_svg_paths_are_the_masks(made, source, tmp_path):
    folder = export_results("svg", source, tmp_path / "out")
    for result in made:
        root = ElementTree.parse(folder / f"{Path(result.image).stem}.svg").getroot()
        paths = [element.get("d") for element in root.iter("{http://www.w3.org/2000/svg}path")]
        for path, (_, mask) in zip(paths, masks_of(result), strict=True):
            assert np.array_equal(path_to_mask(path, result.size), mask)


def test_detections(made):
    supervision = pytest.importorskip("supervision")
    from vlseg.export.supervision import to_supervision

    result = made[1]
    found = to_supervision(result)
    assert isinstance(found, supervision.Detections)
    assert np.array_equal(found.mask, [mask for _, mask in masks_of(result)])
    assert list(found.data["class_name"]) == [text for text, _ in masks_of(result)]
    assert found.area == pytest.approx([mask.sum() for _, mask in masks_of(result)])
    assert np.allclose(supervision.mask_to_xyxy(found.mask) + np.array([0, 0, 1, 1]), found.xyxy)
    assert found.confidence == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.8, 0.3])
    kept = found[found.confidence > 0.5]
    assert len(kept) == len(to_supervision(result, 0.5)) == 5
    drawn = supervision.MaskAnnotator().annotate(np.zeros((*result.size, 3), np.uint8), found)
    assert np.array_equal(drawn.any(-1), np.logical_or.reduce(found.mask))
    result.answers = [answer for answer in result.answers if answer.status == "absent"]
    empty = to_supervision(result)
    assert len(empty) == 0
    assert empty.mask.shape == (0, *result.size)


def test_options_that_do_not_fit_are_one_line(source, tmp_path):
    for kind, options, says in (
        ("png", Options("polygons"), "--as polygons: png has masks"),
        ("cvat", Options(tolerance=2.0), "add --as polygons"),
        ("svg", Options(tolerance=2.0), "as the Results have them"),
        ("svg", Options(copy_images=True), "no place for pictures"),
        ("coco", Options(image_prefix="x"), "only for labelstudio"),
        ("voc", Options(), "no format 'voc'"),
    ):
        with pytest.raises(VLSegError, match=says):
            export_results(kind, source, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()
