from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vlseg.data.dataset import Dataset
from vlseg.data.jsonl import check_sample, read_samples
from vlseg.data.registry import open_dataset
from vlseg.masks import rle as codec
from vlseg.types import VLSegError
from vlseg.worlds.render import render_dataset


def test_scenes_of_a_spec():
    dataset = open_dataset("sprites?n=4&seed=9&size=96x128&queries=5&styles=heldout")
    assert isinstance(dataset, Dataset)
    assert (len(dataset), dataset.split, dataset.problems) == (4, "", [])
    assert dataset.name == "sprites?n=4&seed=9&size=96x128&queries=5&styles=held_out"
    again = open_dataset(dataset.name)
    ids = set()
    for i in range(4):
        sample = dataset[i]
        assert sample.image.shape == (96, 128, 3)
        assert sample.size == (96, 128)
        assert np.array_equal(sample.image, again[i].image)
        assert sample.queries == again[i].queries
        assert check_sample(sample) == []
        assert all(q.kind for q in sample.queries)
        ids |= {q.id for q in sample.queries}
        assert len(sample.queries) == 5
    assert len(ids) == 20
    assert dataset[-1].id == dataset[3].id
    with pytest.raises(IndexError):
        dataset[4]
    assert dataset.fingerprint == again.fingerprint
    assert dataset.fingerprint != open_dataset("sprites?n=4&seed=8&size=96x128&queries=5").fingerprint
    shares = [codec.decode(m).mean() for i in range(4) for q in dataset[i].queries for m in q.masks]
    assert any(0.05 < share < 0.95 for share in shares)


def test_the_same_scenes_as_rendered_files(tmp_path: Path):
    path = render_dataset("sprites", tmp_path, 3, 5, queries=4)
    dataset = open_dataset("sprites?n=3&seed=5&queries=4")
    for sample, stored in zip((dataset[i] for i in range(3)), read_samples(path), strict=True):
        assert [(q.text, q.masks, q.distractors, q.kind) for q in sample.queries] == [
            (q.text, q.masks, q.distractors, q.kind) for q in stored.queries
        ]
    assert json.loads(path.read_text().splitlines()[0])["image"] == "images/000000.png"
    assert len(open_dataset(str(tmp_path))) == 3  # the folder with its data.jsonl


def test_diagrams_of_a_spec():
    dataset = open_dataset("geometry?n=3&seed=2&size=128x160&queries=4")
    assert isinstance(dataset, Dataset)
    assert dataset.name == "geometry?n=3&seed=2&size=128x160&queries=4"
    for i in range(3):
        sample = dataset[i]
        assert sample.image.shape == (128, 160, 3)
        assert check_sample(sample) == []
        assert all(q.kind and q.id.startswith("geometry:2-") for q in sample.queries)
    with pytest.raises(VLSegError, match="from 96"):
        open_dataset("geometry?size=64x64")
