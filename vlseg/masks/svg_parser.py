"""SVG path data to rings: the whole grammar of SVG 1.1 paths, curves flattened to a tolerance.

https://www.w3.org/TR/SVG11/paths.html; arcs by its implementation notes F.6. Stricter than browsers, which draw up to
the first error: whatever does not parse is a VLSegError with its position.
"""

from __future__ import annotations

import math
import re

import numpy as np

from vlseg.types import VLSegError

MAX_LENGTH = 16_000_000
_MAX_POINTS = 8_000_000
_LIMIT = 1e7

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_SPACE = re.compile(r"[ \t\r\n\f]*")
_COMMA = re.compile(r"[ \t\r\n\f]*,?[ \t\r\n\f]*")
_ARGUMENTS = {"M": 2, "L": 2, "H": 1, "V": 1, "C": 6, "S": 4, "Q": 4, "T": 2, "A": 7, "Z": 0}
_NAMES = {"A": ("rx", "ry", "the rotation", "the large-arc flag", "the sweep flag", "x", "y")}

Point = complex  # x + i y: translations and blends of points are plain arithmetic


def parse_path(data: str, tolerance: float = 0.1, max_length: int = MAX_LENGTH) -> list[np.ndarray]:
    """Path data to closed rings ``(N, 2)`` float64 of (x, y), one a subpath, N >= 3, without the closing point.

    Understands M L H V C S Q T A Z, absolute and relative. Curves become chords that stay within ``tolerance`` pixels.
    An open subpath is closed, as filling does; one of fewer than three points encloses nothing and is left out; ""
    gives ``[]``. Raises VLSegError with the position of what is malformed, for text longer than ``max_length``
    characters, for more than 8 million points, and for coordinates beyond ten million pixels.
    """
    if not isinstance(data, str):
        raise VLSegError(f"path data is text, got {type(data).__name__}")
    if len(data) > max_length:
        raise VLSegError(f"path data has {len(data)} characters, more than {max_length}")
    if not tolerance > 0:
        raise VLSegError(f"the flattening tolerance is a positive number of pixels, got {tolerance}")
    return _Parser(data, tolerance).run()


class _Parser:
    """One pass over the text. State as the grammar has it: current point, start of the subpath, last control point."""

    def __init__(self, data: str, tolerance: float):
        self.data = data
        self.tolerance = tolerance
        self.at = 0
        self.comma = False
        self.point: Point = 0j
        self.start: Point = 0j
        self.control: Point | None = None
        self.previous = ""
        self.ring: list[Point] = []
        self.rings: list[np.ndarray] = []
        self.count = 0

    def run(self) -> list[np.ndarray]:
        self.skip(_SPACE)
        while self.at < len(self.data):
            letter = self.data[self.at]
            command = letter.upper()
            if command not in _ARGUMENTS or not letter.isascii():
                raise self.wrong("a command (one of MLHVCSQTAZ)")
            if not self.previous and command != "M":
                raise self.wrong("path data to begin with M")
            self.at += 1
            self.skip(_SPACE)
            self.commands(command, letter.islower())
        self.close()
        return self.rings

    def commands(self, command: str, relative: bool) -> None:
        """One letter and all argument groups that follow it."""
        if command == "Z":
            self.close()
            self.point = self.start
            self.previous = "Z"
            return
        while True:
            values = [self.number(command, i) for i in range(_ARGUMENTS[command])]
            self.apply(command, values, self.point if relative else 0j)
            self.previous = command
            if command == "M":
                command = "L"  # further pairs after a moveto are lines
            # self.number has skipped what separates; a comma there promises another group.
            if self.at >= len(self.data) or self.data[self.at] not in "+-.0123456789":
                if self.comma:
                    raise self.wrong("a number after the comma")
                return

    def apply(self, command: str, v: list[float], base: Point) -> None:
        if command == "M":
            self.close()
            self.point = self.start = base + complex(*v)
            self.begin()
            return
        if not self.ring:
            self.begin()  # drawing on after Z starts a subpath where the last one started
        control: Point | None = None
        if command == "L":
            self.line(base + complex(*v))
        elif command == "H":
            self.line(complex(base.real + v[0], self.point.imag))
        elif command == "V":
            self.line(complex(self.point.real, base.imag + v[0]))
        elif command == "A":
            self.arc(v, base + complex(v[5], v[6]))
        else:
            points = [base + complex(*v[i : i + 2]) for i in range(0, len(v), 2)]
            if command in "ST":
                # The first control point mirrors the last one, if that belonged to a curve of the same kind.
                same = self.previous in ("CS" if command == "S" else "QT") and self.control is not None
                points.insert(0, 2 * self.point - self.control if same and self.control is not None else self.point)
            control = points[-2]
            self.curve([self.point, *points])
        self.control = control

    def begin(self) -> None:
        self.ring = [self.point]

    def close(self) -> None:
        ring = self.ring
        while len(ring) > 1 and ring[-1] == ring[0]:
            ring.pop()
        if len(ring) >= 3:
            points = np.array(ring)
            self.rings.append(np.stack([points.real, points.imag], axis=1))
        self.ring = []

    def line(self, point: Point) -> None:
        if max(abs(point.real), abs(point.imag)) > _LIMIT:
            raise VLSegError(f"path data, before character {self.at}: a coordinate beyond {_LIMIT:.0e} pixels")
        self.grow(1)
        self.ring.append(point)
        self.point = point

    def curve(self, points: list[Point]) -> None:
        """A Bezier curve: n chords stay within d (d - 1) / 8 * max |second difference| / n^2 (degree d)."""
        degree = len(points) - 1
        bend = max(abs(a - 2 * b + c) for a, b, c in zip(points, points[1:], points[2:], strict=False))
        if not bend <= 8 * _LIMIT:
            raise VLSegError(f"path data, before character {self.at}: a coordinate beyond {_LIMIT:.0e} pixels")
        n = max(1, math.ceil(math.sqrt(degree * (degree - 1) / 8 * bend / self.tolerance)))
        self.grow(n)
        t = np.arange(1, n) / n
        weights = [math.comb(degree, k) * t**k * (1 - t) ** (degree - k) for k in range(degree + 1)]
        self.ring += sum((w * p for w, p in zip(weights, points, strict=True)), np.zeros(n - 1, complex)).tolist()
        self.line(points[-1])

    def arc(self, v: list[float], end: Point) -> None:
        """An elliptical arc from the current point: F.6.2 (special cases), F.6.5 (centre), F.6.6 (radii too small)."""
        rx, ry = abs(v[0]), abs(v[1])
        if end == self.point:
            return
        if rx == 0 or ry == 0:
            self.line(end)
            return
        if max(rx, ry) > _LIMIT or max(abs(end.real), abs(end.imag)) > _LIMIT:
            raise VLSegError(f"path data, before character {self.at}: an arc beyond {_LIMIT:.0e} pixels")
        turn = complex(math.cos(math.radians(v[2] % 360)), math.sin(math.radians(v[2] % 360)))
        half = (self.point - end) / 2 / turn
        # In units of the radii the ellipse is the unit circle.
        unit = complex(half.real / rx, half.imag / ry)
        scale = max(1.0, abs(unit))
        rx, ry, unit = rx * scale, ry * scale, unit / scale
        side = math.sqrt(max(0.0, 1 / abs(unit) ** 2 - 1)) * (-1 if (v[3] == v[4]) else 1)
        centre = side * complex(unit.imag, -unit.real)
        first, last = unit - centre, -unit - centre
        begin = math.atan2(first.imag, first.real)
        sweep = (math.atan2(last.imag, last.real) - begin) % (2 * math.pi)
        if not v[4] and sweep > 0:
            sweep -= 2 * math.pi
        step = 2 * math.acos(max(0.0, 1 - self.tolerance / max(rx, ry)))
        n = max(1, math.ceil(abs(sweep) / step))
        self.grow(n)
        angle = begin + sweep * np.arange(1, n) / n
        local = (np.cos(angle) + centre.real) * rx + 1j * (np.sin(angle) + centre.imag) * ry
        self.ring += (local * turn + (self.point + end) / 2).tolist()
        self.line(end)

    def number(self, command: str, index: int) -> float:
        """The next number, and what separates it from a further one. The flags of an arc are one digit each."""
        if command == "A" and index in (3, 4):
            text = self.data[self.at : self.at + 1]
            if text not in ("0", "1"):
                raise self.wrong(f"0 or 1, {_NAMES['A'][index]} of A")
            end = self.at + 1
        else:
            match = _NUMBER.match(self.data, self.at)
            if not match:
                name = _NAMES["A"][index] + " of A" if command == "A" else f"argument {index + 1} of {command}"
                raise self.wrong(f"a number, {name}")
            text, end = match.group(), match.end()
        value = float(text)
        if not abs(value) <= _LIMIT:
            raise self.wrong(f"a number of at most {_LIMIT:.0e}")
        self.at = end
        self.comma = "," in self.skip(_COMMA)
        return value

    def skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.data, self.at)
        text = match.group() if match else ""
        self.at += len(text)
        return text

    def grow(self, n: int) -> None:
        self.count += n
        if self.count > _MAX_POINTS:
            raise VLSegError(f"path data makes more than {_MAX_POINTS} points at a tolerance of {self.tolerance:g} px")

    def wrong(self, expected: str) -> VLSegError:
        found = repr(self.data[self.at : self.at + 12]) if self.at < len(self.data) else "the end"
        return VLSegError(f"path data, character {self.at}: expected {expected}, got {found}")
