"""Image features that are kept and asked again: the answers are those of the picture."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlseg.serving.feature_cache import FeatureCache
from vlseg.systems.base import EncodedImage, Encoder


def same(a, b) -> None:
    assert [x.text for x in a] == [x.text for x in b]
    assert [x.status for x in a] == [x.status for x in b]
    assert [x.score for x in a] == pytest.approx([x.score for x in b], abs=1e-5)
    assert [[s.rle for s in x.segments] for x in a] == [[s.rle for s in x.segments] for x in b]


def test_encoded_images_answer_as_pictures(segmenter, picture, queries, assert_foreground):
    system = segmenter.system
    assert isinstance(system, Encoder)
    shapes = [(120, 160), (160, 120), (120, 160), (60, 80)]
    images = [picture(i, *shape) for i, shape in enumerate(shapes)]
    rows = [queries, queries[:2], queries[1:], queries[2:]]
    expected = system.segment_batch(images, rows, presence_threshold=0)
    encoded = system.encode_batch(images)
    assert [e.size for e in encoded] == shapes
    mixed = [encoded[0], images[1], images[2], encoded[3]]
    for given_images in (encoded, mixed):
        answers = system.segment_batch(given_images, rows, presence_threshold=0)
        for a, b in zip(answers, expected, strict=True):
            assert_foreground(b)
            same(a, b)
    for one, row, b in zip(encoded, rows, expected, strict=True):
        same(system.segment(one, row, presence_threshold=0), b)


entry = st.tuples(st.integers(0, 6), st.integers(0, 60))


@settings(max_examples=60)
@given(st.integers(0, 100), st.lists(st.one_of(entry, st.integers(0, 6)), max_size=40))
def test_cache_against_a_plain_model(limit, steps):
    cache, model = FeatureCache(limit), {}
    for step in steps:
        if isinstance(step, int):
            found = cache.get(bytes([step]))
            assert (found.features if found else None) == model.get(step, (None,))[0]
            if step in model:
                model[step] = model.pop(step)
            continue
        key, size = step
        if size > limit:
            cache.put(bytes([key]), EncodedImage((1, 1), object(), size))
            continue
        kept = EncodedImage((1, 1), object(), size)
        cache.put(bytes([key]), kept)
        model.pop(key, None)
        model[key] = (kept.features, size)
        while sum(s for _, s in model.values()) > limit:
            model.pop(next(iter(model)))
        assert cache.bytes == sum(s for _, s in model.values()) <= limit
        assert len(cache) == len(model)
