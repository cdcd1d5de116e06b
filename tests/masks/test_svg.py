"""SVG: masks to path data and back bit for bit, the grammar of paths, and whole documents."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlseg.masks import rle as codec
from vlseg.masks.raster import raster
from vlseg.masks.svg import document, path_data, path_to_mask, path_to_rle
from vlseg.masks.svg_parser import parse_path
from vlseg.types import Answer, Result, Segment, VLSegError

from .strategies import blobs, masks, nested

SVG = "{http://www.w3.org/2000/svg}"


@given(masks())
def test_mask_round_trip(mask: np.ndarray):
    data = path_data(mask)
    np.testing.assert_array_equal(path_to_mask(data, mask.shape), mask)
    assert path_to_rle(data, mask.shape) == codec.encode(mask)
    assert "." not in data


def test_large_round_trip():
    mask = blobs(300, 400, 2)
    np.testing.assert_array_equal(path_to_mask(path_data(mask), mask.shape), mask)


def test_writing():
    mask = np.zeros((20, 20), bool)
    mask[12:14, 10:15] = True
    assert path_data(mask) == "M 10 12 H 15 V 14 H 10 Z"
    ring = np.array([[0.5, -0.001], [3, 0], [3.33333, 2.0]])
    assert path_data([ring]) == "M 0.5 0 H 3 L 3.33 2 Z"
    assert path_data([ring], decimals=0) == "M 0 0 H 3 V 2 Z"
    assert path_data([np.array([[1, 2], [3, 4]])]) == ""
    assert path_data(np.zeros((3, 3), bool)) == ""
    with pytest.raises(VLSegError, match="NaN"):
        path_data([np.array([[0, 0], [1, np.nan], [2, 2]])])


@given(st.lists(st.lists(st.tuples(st.floats(-99, 99), st.floats(-99, 99)), min_size=3, max_size=8), max_size=3))
def test_rings_round_trip(points: list):
    rings = [np.round(np.array(p), 2) + 0.0 for p in points]
    again = parse_path(path_data(rings))
    # A ring that ends where it starts loses the repeated point, one without three points is dropped.
    np.testing.assert_array_equal(raster(again, (90, 90)), raster(rings, (90, 90)))


SQUARE = [[1.0, 1.0], [4.0, 1.0], [4.0, 5.0], [1.0, 5.0]]


@pytest.mark.parametrize(
    "data",
    [
        "M 1 1 L 4 1 L 4 5 L 1 5 Z",
        "M1,1 4,1 4,5 1,5z",
        "m 1 1 l 3 0 l 0 4 l -3 0 z",
        "m1 1 3 0 0 4-3 0",
        "M 1 1 H 4 V 5 H 1 Z",
        "M1 1h3v4h-3z",
        "  M1e0 1.0\n\tL+4 1L4,5 ,1,5,\n".replace(" ,1", ",1").rstrip(",\n"),
        "M1 1H2 3 4V3 5H1Z".replace("2 3 ", "").replace("3 5", "5"),
        "M 1 1 H 4 V 5 H 1 L 1 1 Z",
        "M.1e1 1.L40e-1 1 4 5 1 5",
    ],
)
def test_spellings_of_one_square(data: str):
    (ring,) = parse_path(data)
    assert ring.tolist() == SQUARE


def test_subpaths_and_what_follows_z():
    rings = parse_path("M 1 1 h 2 v 2 z m 5 5 h 2 v 2 z h 3 v 3")
    assert [r[0].tolist() for r in rings] == [[1, 1], [6, 6], [6, 6]]
    assert parse_path("") == parse_path("  \n") == parse_path("M 1 1") == parse_path("M 1 1 L 2 2 Z") == []


def test_even_odd():
    data = path_data(nested(9, 9))
    assert path_to_mask(data, (9, 9)).sum() == nested(9, 9).sum()
    twice = "M0 0H4V4H0Z M0 0H4V4H0Z"
    assert not path_to_mask(twice, (4, 4)).any()


def radii(ring: np.ndarray, x: float, y: float, rx: float = 1, ry: float = 1) -> np.ndarray:
    """Distances of densely sampled chords from a centre, in units of the radii."""
    ends = np.roll(ring, -1, axis=0)
    t = np.linspace(0, 1, 9)[:, None, None]
    points = (ring * (1 - t) + ends * t).reshape(-1, 2)
    return np.hypot((points[:, 0] - x) / rx, (points[:, 1] - y) / ry)


@pytest.mark.parametrize("tolerance", [1.0, 0.1, 0.01])
@pytest.mark.parametrize(
    "data",
    [
        "M 10 50 A 40 40 0 0 1 90 50 A 40 40 0 0 1 10 50 Z",
        "M10 50A40 40 0 1190 50A40 40 0 1110 50Z",
        "M 10 50 a 40,40 0 0 0 80,0 a 40,40 0 0 0 -80,0 z",
        "M 10 50 A 4 4 33 0 1 90 50 A 4 4 0 0 1 10 50 Z",
    ],
)
def test_circles_of_arcs(data: str, tolerance: float):
    (ring,) = parse_path(data, tolerance)
    distance = radii(ring, 50, 50)
    assert distance.max() < 40 + 1e-9
    assert distance.min() > 40 - tolerance - 1e-9


def test_arc_flags_choose_among_four():
    areas = {}
    for large in "01":
        for sweep in "01":
            (ring,) = parse_path(f"M 20 50 A 50 50 0 {large} {sweep} 60 50 Z", 0.001)
            x, y = ring.T
            areas[large + sweep] = float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)
    half = np.arcsin(20 / 50)
    small = 2500 * (half - np.sin(half) * np.cos(half))
    assert areas["01"] == pytest.approx(small, rel=1e-3)
    assert areas["00"] == pytest.approx(-small, rel=1e-3)
    assert areas["11"] == pytest.approx(np.pi * 2500 - small, rel=1e-3)
    assert areas["10"] == pytest.approx(small - np.pi * 2500, rel=1e-3)


def test_rotated_ellipse():
    (ring,) = parse_path("M 50 20 A 30 10 90 0 1 50 80 A 30 10 90 0 1 50 20 Z", 0.01)
    distance = radii(ring, 50, 50, 10, 30)
    assert distance.min() > 0.998
    assert distance.max() < 1 + 1e-9


def test_degenerate_arcs():
    assert parse_path("M 0 0 A 0 5 0 0 1 9 0 L 9 9")[0].tolist() == [[0, 0], [9, 0], [9, 9]]
    assert parse_path("M 0 0 A 5 5 0 0 1 0 0 L 9 0 L 9 9")[0].tolist() == [[0, 0], [9, 0], [9, 9]]


def bezier(points: np.ndarray, t: np.ndarray) -> np.ndarray:
    """De Casteljau."""
    rows = [np.repeat(p[None], len(t), axis=0) for p in points]
    while len(rows) > 1:
        rows = [a + (b - a) * t[:, None] for a, b in itertools.pairwise(rows)]
    return rows[0]


@pytest.mark.parametrize("tolerance", [1.0, 0.1, 0.01])
@pytest.mark.parametrize(
    ("data", "curves"),
    [
        ("M 0 0 C 0 60 90 60 90 0", [[[0, 0], [0, 60], [90, 60], [90, 0]]]),
        ("M 0 0 c 0 60 90 60 90 0", [[[0, 0], [0, 60], [90, 60], [90, 0]]]),
        ("M 0 0 Q 50 90 100 0", [[[0, 0], [50, 90], [100, 0]]]),
        ("M 0 0 Q 50 90 100 0 T 200 9", [[[0, 0], [50, 90], [100, 0]], [[100, 0], [150, -90], [200, 9]]]),
        ("M 0 0 q 50 90 100 0 t 100 9", [[[0, 0], [50, 90], [100, 0]], [[100, 0], [150, -90], [200, 9]]]),
        (
            "M 0 0 C 0 60 90 60 90 0 S 150 10 190 5",
            [[[0, 0], [0, 60], [90, 60], [90, 0]], [[90, 0], [90, -60], [150, 10], [190, 5]]],
        ),
        ("M 0 0 S 60 90 90 0", [[[0, 0], [0, 0], [60, 90], [90, 0]]]),
        ("M 0 0 Q 9 50 50 0 S 60 90 90 0", [[[0, 0], [9, 50], [50, 0]], [[50, 0], [50, 0], [60, 90], [90, 0]]]),
    ],
)
def test_curves_stay_within_the_tolerance(data: str, curves: list, tolerance: float):
    (ring,) = parse_path(data, tolerance)
    true = np.concatenate([bezier(np.array(c, dtype=float), np.linspace(0, 1, 400)) for c in curves])
    assert ring[0].tolist() == curves[0][0]
    assert ring[-1].tolist() == curves[-1][-1]
    a, b = ring[:-1, None], ring[1:, None]
    along = np.clip(((true - a) * (b - a)).sum(-1) / ((b - a) ** 2).sum(-1), 0, 1)
    distance = np.linalg.norm(a + along[..., None] * (b - a) - true, axis=-1).min(axis=0)
    assert distance.max() <= tolerance
    assert len(ring) < 60 / tolerance**0.5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("L 1 2", "character 0: expected path data to begin with M"),
        ("z", "begin with M"),
        ("M 1", "character 3: expected a number, argument 2 of M, got the end"),
        ("M 1 2 3", "argument 2 of L, got the end"),
        ("M 1 2,", "number after the comma"),
        ("M 1 2 , L 3 4", "character 8: expected a number after the comma"),
        ("M 1 2 X", "character 6: expected a command"),
        ("M 1 2 Z 3", "character 8: expected a command"),
        ("M 1 2 L 3 nan", "character 10: expected a number"),
        ("M 1 2 L ٣ 4", "character 8"),
        ("M 1 1 A 1 1 0 2 0 3 3", "character 14: expected 0 or 1, the large-arc flag of A"),
        ("M 1 1 A 1 1 0 0 0 3", "y of A"),
        ("M 1e9 0", "at most 1e\\+07"),
        ("M 1,,2", "character 4"),
        ("M" + " 9e6 9e6 m" * 9 + " 1 1 l 9e6 0", "beyond"),
    ],
)
def test_malformed_paths(data: str, message: str):
    with pytest.raises(VLSegError, match=message) as caught:
        parse_path(data)
    assert "\n" not in str(caught.value)


def test_limits():
    with pytest.raises(VLSegError, match="12 characters, more than 10"):
        parse_path("M 1 1 L 2 2 ", max_length=10)
    with pytest.raises(VLSegError, match="more than 8000000 points"):
        parse_path("M 0 0" + " C 9e6 9e6 0 9e6 1 1" * 2000, tolerance=1e-3)
    with pytest.raises(VLSegError, match="tolerance"):
        parse_path("M 1 1", tolerance=0)
    with pytest.raises(VLSegError, match="text"):
        parse_path(None)  # type: ignore[arg-type]


@given(st.text("MmLlHhVvCcSsQqTtAaZz0123456789.,-+e \n", max_size=40))
def test_any_text_parses_or_is_refused(data: str):
    try:
        rings = parse_path("M 1 1 " + data, tolerance=1.0)
    except VLSegError:
        return
    for ring in rings:
        assert ring.ndim == 2
        assert np.isfinite(ring).all()


def test_document():
    mask = nested(30, 40)
    rle = codec.encode(mask)
    segment = Segment(0.876, codec.bbox(rle), codec.area(rle), rle, path_data(mask))
    words = 'the <b>"mug"</b> & \x00 cup'
    answers = [
        Answer(words, "found", 0.9, (30, 40), None, [segment, segment]),
        Answer("the zebra & co", "absent", 0.1, (30, 40)),
    ]
    text = document(Result("a&b.jpg", (30, 40), "m", answers))
    root = ET.fromstring(text)
    assert root.get("viewBox") == "0 0 40 30"
    paths = root.findall(f".//{SVG}path")
    assert len(paths) == 2
    assert all(p.get("fill-rule") == "evenodd" for p in paths)
    np.testing.assert_array_equal(path_to_mask(paths[0].get("d") or "", (30, 40)), mask)
    title = paths[0].find(f"{SVG}title")
    assert title is not None
    assert title.text == 'the <b>"mug"</b> & \ufffd cup (0.88)'
    assert root.find(f"{SVG}desc").text == "the zebra & co: absent"  # type: ignore[union-attr]
    assert "href" not in text
    assert text.count("http") == 1, "only the name space"
