"""The geometry world: solved constraints, exact ink, expressions that are true and unique."""

from collections import Counter

import numpy as np
import pytest

from vlseg.types import VLSegError
from vlseg.worlds.draw import Draw
from vlseg.worlds.geometry import construct, relations
from vlseg.worlds.geometry.diagrams import GeometryWorld
from vlseg.worlds.geometry.figures import Element, Look, degrees, distance_to
from vlseg.worlds.geometry.paint import mask_of
from vlseg.worlds.geometry.phrases import QUERY_KINDS
from vlseg.worlds.geometry.sketch import Sketch

WORLD = GeometryWorld()


@pytest.fixture(scope="module")
def diagrams():
    return [WORLD.scene(5, i, queries=10) for i in range(40)]


def sketch(rule, first=construct.triangle, seeds=60):
    """A sketch in which `first` and then `rule` found room."""
    for seed in range(seeds):
        s = Sketch((256, 256), Draw(seed, 1))
        if any(construct._attempt(s, first) for _ in range(12)):
            before = len(s.elements)
            if any(construct._attempt(s, rule) for _ in range(12)):
                return s, s.elements[before:]
    raise AssertionError(f"{rule.__name__} never found room")


def segment(*ends, **look):
    return Element("segment", ("A", "B"), np.array(ends, float), look=Look(**look))


def disc(x, y, radius, **look):
    return Element("circle", ("O",), np.array([[x, y]], float), radius, Look(**look))


# the constructions ---------------------------------------------------------------------------------------------------
def test_altitude_meets_the_side_at_a_right_angle():
    s, new = sketch(construct.altitude)
    height = next(e for e in new if e.kind == "segment")
    assert any(relations.perpendicular(height, e) == "yes" for e in s.elements if e.side)


def test_bisector_halves_the_angle():
    s, new = sketch(construct.bisector)
    line = next(e for e in new if e.kind == "segment")
    apex, place = line.points
    polygon = next(e for e in s.elements if e.kind == "polygon")
    others = [p for p in polygon.points if not np.allclose(p, apex)]
    halves = [degrees(np.stack([p, apex, place])) for p in others]
    assert halves[0] == pytest.approx(halves[1], abs=1e-6)


@pytest.mark.parametrize("rule", [construct.incircle, construct.circumcircle])
def test_circles_of_a_triangle(rule):
    s, new = sketch(rule)
    circle = next(e for e in new if e.kind == "circle")
    if rule is construct.incircle:
        assert [relations.tangent(circle, e) for e in s.elements if e.side] == ["yes"] * 3
    else:
        polygon = next(e for e in s.elements if e.kind == "polygon")
        np.testing.assert_allclose(distance_to(circle, polygon.points), 0, atol=1e-9)


def test_tangent_touches_its_circle():
    s, new = sketch(construct.tangent, construct.circle)
    line, circle = (
        next(e for e in part if e.kind == kind) for part, kind in ((new, "segment"), (s.elements, "circle"))
    )
    assert relations.tangent(circle, line) == "yes"
    assert distance_to(line, circle.points)[0] == pytest.approx(circle.radius)


def test_a_rule_that_fails_half_way_leaves_nothing():
    def half(s):
        s.point(np.array([50.0, 50.0]))
        return False

    s = Sketch((256, 256), Draw(1))
    assert not construct._attempt(s, half)
    assert not s.points
    assert not s.elements


# relations -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("other", "want"),
    [
        (segment((20, 60), (120, 60)), "yes"),
        (segment((20, 60), (120, 66)), "open"),
        (segment((20, 60), (60, 120)), "no"),
        (segment((130, 20), (200, 20)), "yes"),
        (segment((60, 20), (200, 20)), "open"),  # on one line and touching: part of the other?
    ],
)
def test_parallel(other, want):
    assert relations.parallel(segment((20, 20), (120, 20)), other) == want


@pytest.mark.parametrize(("y", "want"), [(50, "yes"), (53, "open"), (70, "no"), (10, "no")])
def test_tangent_to_a_segment(y, want):
    assert relations.tangent(disc(100, 100, 50), segment((40, y), (160, y))) == want


def test_tangency_of_an_extension_only_is_none():
    assert relations.tangent(disc(100, 100, 50), segment((150, 50), (240, 50))) == "no"


def test_chord_diameter_radius():
    circle = disc(100, 100, 50)
    assert relations.is_diameter(segment((50, 100), (150, 100)), circle) == "yes"
    assert relations.is_chord(segment((50, 100), (100, 150)), circle) == "yes"
    assert relations.is_diameter(segment((50, 100), (100, 150)), circle) == "no"
    assert relations.is_radius(segment((100, 100), (100, 150)), circle) == "yes"


def test_crossing_counts_inner_points_only():
    assert relations.crosses(segment((0, 0), (100, 100)), segment((0, 100), (100, 0))) == "yes"
    assert relations.crosses(segment((0, 0), (100, 100)), segment((100, 100), (160, 0))) == "open"
    assert relations.crosses(segment((0, 0), (40, 40)), segment((0, 100), (100, 0))) == "no"


# ink -----------------------------------------------------------------------------------------------------------------
def test_ink_of_a_level_stroke_is_exact():
    mask = mask_of(segment((10, 20), (50, 20), width=4.0), (64, 64))
    assert mask[18:22, 10:50].all()
    assert not mask[:17].any()
    assert not mask[23:].any()
    assert 160 <= mask.sum() <= 4 * 44


@pytest.mark.parametrize("width", [1.4, 2.0, 3.5])
def test_ink_agrees_with_the_area_of_the_curve(width):
    mask = mask_of(disc(64.3, 63.8, 40.0, width=width), (128, 128))
    assert mask.sum() == pytest.approx(2 * np.pi * 40 * width, rel=0.06)
    assert not mask[64, 64]
    filled = mask_of(disc(64.3, 63.8, 40.0, width=width, shaded=True), (128, 128))
    assert filled.sum() == pytest.approx(np.pi * (40 + width / 2) ** 2, rel=0.02)


def test_dashes_leave_gaps():
    whole = mask_of(segment((10, 20), (110, 20), width=3.0), (40, 128))
    dashed = mask_of(segment((10, 20), (110, 20), width=3.0, dash=(8.0, 6.0)), (40, 128))
    assert 0.45 < dashed.sum() / whole.sum() < 0.7
    assert not (dashed & ~whole).any()


def test_ink_beyond_the_edge_is_cut():
    assert not mask_of(segment((-50, -50), (-20, -20)), (40, 40)).any()
    assert mask_of(segment((-50, 10), (20, 10)), (40, 40)).any()


# the world -----------------------------------------------------------------------------------------------------------
def test_same_seed_same_bytes_and_another_seed_another_diagram():
    a, b, c = WORLD.scene(1, 2), WORLD.scene(1, 2), WORLD.scene(1, 3)
    assert (a.image == b.image).all()
    assert [q.text for q in a.queries] == [q.text for q in b.queries]
    assert (a.image != c.image).any()


def test_every_element_has_ink_and_shows(diagrams):
    for diagram in diagrams:
        paper = np.median(diagram.image.reshape(-1, 3), 0)
        for i, element in enumerate(diagram.elements):
            mask = diagram.mask(i)
            assert 0 < mask.sum() < 0.6 * mask.size, element
            if element.look.colour != "white" or element.kind != "angle":
                contrast = np.abs(diagram.image[mask].astype(float) - paper).sum(-1)
                assert np.median(contrast) > 60, (element, contrast.mean())


def test_queries_are_different_and_of_all_kinds(diagrams):
    counts = Counter(q.kind for diagram in diagrams for q in diagram.queries)
    assert set(counts) == set(QUERY_KINDS)
    total = sum(counts.values())
    assert total > 9 * len(diagrams)
    assert 0.1 < (counts["absent"] + counts["absent-hard"]) / total < 0.3
    for diagram in diagrams:
        texts = [q.text for q in diagram.queries]
        assert len(set(texts)) == len(texts)
        for query in diagram.queries:
            assert bool(query.targets) != query.kind.startswith("absent")
            assert not set(query.targets) & set(query.distractors)


def test_labels_name_what_they_should(diagrams):
    seen = 0
    for diagram in diagrams:
        for query in diagram.queries:
            if query.kind == "label":
                element = diagram.elements[query.targets[0]]
                letters = [w.strip("?.,") for w in query.text.split() if w.strip("?.,").isupper()]
                letters = [w for w in letters if w != "I"] or letters
                if element.kind in ("point", "segment", "polygon", "angle"):
                    assert sorted(letters[-1]) == sorted(element.names), query.text
                    seen += 1
    assert seen > 40


def test_tangent_queries_are_true(diagrams):
    """Restated without the judges: the distance of a circle's centre from the line that is asked for."""
    found = 0
    many = [*diagrams, *(WORLD.scene(9, i, queries=12, kinds={"relation": 1.0}) for i in range(60))]
    for diagram in many:
        for query in diagram.queries:
            subject, _, behind = query.text.partition(" tangent to ")
            if len(query.targets) != 1 or not behind or "circle" not in subject or "not" in subject:
                continue
            target = diagram.elements[query.targets[0]]
            letters = behind.rstrip("?.").split()
            name = next((w.strip(",?") for w in letters if w.strip(",?").isupper() and len(w.strip(",?")) == 2), None)
            line = next(
                (e for e in diagram.elements if name and e.kind == "segment" and set(e.names) == set(name)), None
            )
            if line is None:
                continue
            a, b = line.points
            away = abs((b - a)[0] * (target.points[0] - a)[1] - (b - a)[1] * (target.points[0] - a)[0]) / line.length
            assert away == pytest.approx(target.radius, abs=0.3)
            found += 1
    assert found >= 3


def test_sample_carries_ids_kinds_and_overlapping_masks(diagrams):
    sample = diagrams[0].to_sample("g-0")
    assert sample.size == (256, 256)
    assert len({q.id for q in sample.queries}) == len(sample.queries)
    assert all(rle["size"] == [256, 256] for q in sample.queries for rle in (q.masks or []))


@pytest.mark.parametrize("arguments", [(1, 1, (64, 256)), (-1, 0), (0, -1)])
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(VLSegError, match="geometry"):
        WORLD.scene(*arguments)
    with pytest.raises(VLSegError, match="kinds"):
        WORLD.scene(0, 0, kinds={"size": 1.0})


def test_vocabulary_has_no_letters_of_points():
    words = WORLD.vocabulary()
    assert {"tangent", "segment", "circle", "midpoint", "parallel"} <= set(words)
    assert not [w for w in words if w.isupper()]
