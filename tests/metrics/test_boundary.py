"""Boundary IoU and Buffered IoU against pixel-by-pixel restatements of their definitions, and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from vlseg.metrics.boundary import boundary, boundary_overlap, boundary_width
from vlseg.metrics.buffered import buffered_overlaps
from vlseg.metrics.morphology import box_of, dilate, erode

SQUARE = np.ones((3, 3), bool)


def near(mask, y, x, steps, value):
    """Whether a pixel of that value lies within `steps` rows and columns; beyond the image is outside."""
    height, width = mask.shape
    for v in range(y - steps, y + steps + 1):
        for u in range(x - steps, x + steps + 1):
            inside = 0 <= v < height and 0 <= u < width and mask[v, u]
            if bool(inside) == value:
                return True
    return False


def literal_boundary(mask, width):
    """The paper: pixels of the mask that are within d of its contour."""
    band = np.zeros_like(mask)
    for y, x in zip(*np.nonzero(mask), strict=True):
        band[y, x] = near(mask, y, x, width, False)
    return band


def literal_dilation(mask, steps):
    grown = np.zeros_like(mask)
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            grown[y, x] = near(mask, y, x, steps, True)
    return grown


def shapes(count, seed=0):
    """Blobs with holes and borders, some of them empty or full."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        size = rng.integers(1, 30, 2)
        noise = ndimage.gaussian_filter(rng.standard_normal(size), rng.choice([0.5, 1.5, 3]))
        yield noise > rng.choice([-9, noise.mean(), noise.mean(), 9])


@settings(max_examples=60)
@given(
    st.integers(1, 11), st.integers(1, 11), st.integers(0, 4), st.integers(0, 2**32 - 1), st.sampled_from([0.2, 0.9])
)
def test_morphology_pixel_by_pixel(height, width, steps, seed, density):
    mask = np.random.default_rng(seed).random((height, width)) < density
    assert (dilate(mask, steps) == literal_dilation(mask, steps)).all()
    assert (mask & ~erode(mask, steps) == literal_boundary(mask, steps)).all()


def test_morphology_is_that_of_scipy():
    for mask in shapes(300):
        for steps in (1, 2, 7):
            assert (dilate(mask, steps) == ndimage.binary_dilation(mask, SQUARE, steps)).all()
            assert (erode(mask, steps) == ndimage.binary_erosion(mask, SQUARE, steps)).all()


def test_boundary_iou_is_that_of_its_authors():
    """d = round(0.02 * diagonal), at least 1; d erosions of the padded mask by 3 x 3; IoU of what they take."""

    def band(mask):
        steps = max(1, round(float(0.02 * np.sqrt(mask.shape[0] ** 2 + mask.shape[1] ** 2))))
        padded = np.pad(mask, 1)
        for _ in range(steps):
            padded = ndimage.binary_erosion(padded, SQUARE, border_value=1)
        return mask & ~padded[1:-1, 1:-1]

    rng = np.random.default_rng(3)
    foreground = []
    for _ in range(150):
        size = rng.integers(20, 160, 2)
        pair = [ndimage.gaussian_filter(rng.standard_normal(size), 6) > 0 for _ in range(2)]
        a, b = band(pair[0]), band(pair[1])
        assert boundary_overlap(*pair) == ((a & b).sum(), (a | b).sum())
        foreground += [mask.mean() for mask in pair]
    assert 0.05 < np.median(foreground) < 0.95


def test_boundary_by_hand():
    """A 20 x 20 square in 100 x 100: the diagonal is 141, d = 3, its boundary the frame of 20² - 14² = 204 pixels."""
    truth = np.zeros((100, 100), bool)
    truth[40:60, 40:60] = True
    assert boundary_width((100, 100)) == 3
    assert boundary(truth, 3).sum() == 20**2 - 14**2
    moved = np.roll(truth, 3, 1)  # the frames share 2 bars of 3 x 17 and 2 of 14 rows by 0: what is left of the sides
    both = (boundary(truth, 3) & boundary(moved, 3)).sum()
    assert both == 2 * 3 * 17
    assert boundary_overlap(moved, truth) == (both, 2 * 204 - both)
    assert boundary_overlap(truth, truth) == (204, 204)
    assert boundary_overlap(np.zeros_like(truth), truth) == (0, 204)
    assert boundary_overlap(truth, truth, ratio=0.0) == (20**2 - 18**2,) * 2  # never thinner than 1


def test_a_mask_at_the_border_has_a_boundary_there():
    full = np.ones((50, 50), bool)
    assert boundary(full, 1).sum() == 50**2 - 48**2


def test_ignored_pixels_do_not_count_but_bands_stay():
    truth = np.zeros((100, 100), bool)
    truth[40:60, 40:60] = True
    valid = np.ones_like(truth)
    valid[:, 50:] = False
    assert boundary_overlap(truth, truth, valid=valid) == (102, 102)  # no new boundary where the ignored half begins
    (tolerant, dilated) = buffered_overlaps(truth, truth, 3, valid)
    assert tolerant == (2 * 20 * 10, 2 * 20 * 10)
    assert dilated == (26 * 13, 26 * 13)


def line(top, bottom, left=40, right=200):
    mask = np.zeros((60, 240), bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize(
    ("prediction", "plain", "tolerant", "dilated"),
    [
        (line(31, 33), 0.00, 1.00, 0.60),  # shifted by 2
        (line(26, 34, 37, 203), 0.24, 1.00, 0.55),  # fattened by 3
        (line(21, 39, 32, 208), 0.10, 0.31, 0.30),  # fattened by 8
        (line(29, 31, 40, 120), 0.50, 0.51, 0.52),  # the half of it
        (line(41, 43), 0.00, 0.00, 0.00),  # shifted by 12
    ],
)
def test_buffered_iou_of_a_thin_line(prediction, plain, tolerant, dilated):
    """A line of 2 x 160 pixels, r = 3: what each definition forgives."""
    truth = line(29, 31)
    both = (prediction & truth).sum() / (prediction | truth).sum()
    assert both == pytest.approx(plain, abs=0.006)
    a, b = buffered_overlaps(prediction, truth, 3)
    assert a[0] / a[1] == pytest.approx(tolerant, abs=0.006)
    assert b[0] / b[1] == pytest.approx(dilated, abs=0.006)


def test_buffered_iou_pixel_by_pixel():
    rng = np.random.default_rng(5)
    seen = set()
    for _ in range(60):
        size, r = rng.integers(2, 14, 2), int(rng.integers(0, 3))
        p, t = (rng.random((2, *size)) < rng.choice([0.1, 0.5])).astype(bool)
        near_p, near_t = literal_dilation(p, r), literal_dilation(t, r)
        right_p, right_t = sum(near_t[p]), sum(near_p[t])
        true = (right_p + right_t) / 2
        below = true + (p.sum() - right_p) + (t.sum() - right_t)
        a, b = buffered_overlaps(p, t, r)
        assert a[0] * below == pytest.approx(a[1] * true)
        assert b == ((near_p & near_t).sum(), (near_p | near_t).sum())
        assert buffered_overlaps(t, p, r) == (a, b)  # symmetric
        if r == 0:
            assert a == (2 * b[0], 2 * b[1])
            assert b == ((p & t).sum(), (p | t).sum())
        seen.add(r)
    assert seen == {0, 1, 2}


def test_box():
    a, b = np.zeros((2, 9, 9), bool)
    a[4, 5] = b[6, 2] = True
    assert box_of(a, b) == (slice(4, 7), slice(2, 6))
    assert box_of(a, b, margin=3) == (slice(1, 9), slice(0, 9))
    assert a[box_of(np.zeros_like(a))].shape == (1, 1)
