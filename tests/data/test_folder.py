from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from originals import HEIGHT, WIDTH, picture
from PIL import Image

from vlseg.data.jsonl import check_sample
from vlseg.data.registry import open_dataset
from vlseg.masks import rle as codec
from vlseg.types import VLSegError


def block(x: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[8:28, x : x + 16] = True
    return mask


def save(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k, name in enumerate(("1.jpg", "2.jpg", "3.png")):
        picture(tmp_path / "images" / name, seed=k)
    return tmp_path


def test_words_from_file_names(folder: Path):
    save(folder / "masks" / "1" / "red mug.png", block(2))
    save(folder / "masks" / "1" / "dog.png", block(20))
    save(folder / "masks" / "1" / "dog.2.png", block(40))
    save(folder / "masks" / "2__the_left_dog.png", block(4))
    save(folder / "masks" / "9" / "cat.png", block(4))
    save(folder / "masks" / "1.png", block(4))
    dataset = open_dataset(str(folder))
    assert (len(dataset), dataset.split) == (2, "")
    first, second = dataset[0], dataset[1]
    assert first.image == folder / "images" / "1.jpg"
    assert [(q.id, q.text, len(q.masks)) for q in first.queries] == [("1:1", "dog", 2), ("1:2", "red mug", 1)]
    assert np.array_equal(codec.decode(first.queries[1].masks[0]), block(2))
    assert sorted(codec.bbox(m)[0] for m in first.queries[0].masks) == [20.0, 40.0]
    assert second.queries[0].text == "the left dog"
    assert check_sample(first) == []
    assert [(p.where, p.what) for p in dataset.problems] == [
        ("masks/1.png", "its name tells no words; write words.csv"),
        ("masks/9/cat.png", "no picture 9 in images/"),
        ("images/3.png", "has no masks in masks/"),
    ]


def test_words_from_a_table(folder: Path):
    save(folder / "masks" / "1.png", block(2))
    save(folder / "masks" / "a.png", block(20))
    save(folder / "masks" / "b.png", block(40))
    table = folder / "words.csv"
    table.write_text(
        'image,words,mask,kind\n1.jpg,"the mug, red",1.png,colour\n1.jpg,dogs,a.png; b.png,\n2.jpg,the zebra,,absent\n'
        "9.jpg,x,1.png,\n1.jpg,,1.png,\n1.jpg,x,none.png,\n1.jpg,too few\n1.jpg,a,1.png,k,too many\n",
        encoding="utf-8-sig",
    )
    dataset = open_dataset(str(folder))
    assert [(q.text, len(q.masks), q.kind) for q in dataset[0].queries] == [
        ("the mug, red", 1, "colour"),
        ("dogs", 2, None),
    ]
    assert [(q.text, q.masks, q.kind) for q in dataset[1].queries] == [("the zebra", [], "absent")]
    assert [p.where for p in dataset.problems] == [*(f"words.csv: line {n}" for n in range(5, 10)), "images/3.png"]
    assert "quotes" in dataset.problems[3].what


def test_a_table_without_masks_means_one_mask_an_image(folder: Path):
    for name in ("1", "2", "3"):
        save(folder / "masks" / f"{name}.png", block(2))
    (folder / "words.tsv").write_text("image\twords\n1.jpg\tthe mug\n2.jpg\tthe dog\n3.png\tthe cat\n")
    dataset = open_dataset(str(folder))
    assert dataset.problems == []
    assert [dataset[i].queries[0].text for i in range(3)] == ["the mug", "the dog", "the cat"]
    assert np.array_equal(codec.decode(dataset[2].queries[0].masks[0]), block(2))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "got nothing"),
        (b"picture,words\n", "got picture, words"),
        (b"image,words,masks\n", "got image, words, masks"),
        ("image,words\n1.jpg,café\n".encode("latin-1"), "not UTF-8"),
    ],
)
def test_tables_that_are_none(folder: Path, content: bytes, says: str):
    (folder / "masks").mkdir()
    (folder / "words.csv").write_bytes(content)
    with pytest.raises(VLSegError, match=says):
        open_dataset(str(folder))


def test_pictures_with_one_stem(folder: Path):
    picture(folder / "images" / "1.png")
    save(folder / "masks" / "1" / "dog.png", block(2))
    dataset = open_dataset(str(folder))
    assert dataset[0].id == "1.jpg"
    assert [p.where for p in dataset.problems] == ["images/1.png", "images/2.jpg", "images/3.png"]
    for path in (folder / "images").iterdir():
        path.unlink()
    with pytest.raises(VLSegError, match="no picture in this folder"):
        open_dataset(str(folder))


def test_a_broken_mask_is_told_when_it_is_needed(folder: Path):
    (folder / "masks" / "1").mkdir(parents=True)
    (folder / "masks" / "1" / "dog.png").write_bytes(b"no picture")
    with pytest.raises(VLSegError, match=r"masks/1/dog\.png: .*not a mask that can be read"):
        open_dataset(str(folder))[0]
