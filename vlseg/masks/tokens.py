"""The language of path tokens: its alphabet, its grammar as the table of a small automaton, and reading and writing.

    path   := end | box box box box rings end          no box: the empty mask; no ring: the whole box
    rings  := nothing | ring { <ring> ring }
    ring   := vertex { vertex | <cubic> vertex vertex vertex } [ <cubic> vertex vertex ]
    vertex := <xy_3_5>   or, with two tokens a vertex, <x_3> <y_5>

A line needs no command: it goes to the next vertex. A cubic goes through two control points to its end; a ring closes
by a line, or by a cubic where the last one names no end. Whatever the automaton accepts is a path, so that a model
that is held to it cannot write a wrong one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np

from vlseg.masks.grid import GridRing
from vlseg.types import VLSegError

# Where one is in a path, and by which class of token one goes on to where. START is state 0, STOP the last.
_GRAMMAR: dict[str, dict[str, str]] = {
    "start": {"box": "top", "end": "stop"},
    "top": {"box": "right"},
    "right": {"box": "bottom"},
    "bottom": {"box": "boxed"},
    "boxed": {"vertex": "ring", "end": "stop"},
    "ring": {"vertex": "ring", "cubic": "first control", "ring": "new ring", "end": "stop"},
    "new ring": {"vertex": "ring"},
    "first control": {"vertex": "second control"},
    "second control": {"vertex": "curve's end"},
    "curve's end": {"vertex": "ring", "ring": "new ring", "end": "stop"},
    "stop": {},
}


class Vocabulary:
    """The alphabet of path tokens, numbered from 0: <path_end>, <ring>, <cubic> if any, boxes, vertices.

    grid: places along each side of the box; box_bins: bins along each side of the image; joint: one token a vertex
    (grid * grid of them) in place of two (2 * grid); curves: whether there is <cubic>.

    classes: names of the token classes. states: names of the states. transitions ``(S, C)`` int64: the state after a
    token of each class, -1 where none may stand. token_class ``(V,)`` int64. start, stop: first and accepting state.
    """

    def __init__(self, grid: int, box_bins: int, joint: bool, curves: bool):
        self.grid, self.box_bins, self.joint, self.curves = grid, box_bins, joint, curves
        sizes = {"end": 1, "ring": 1, "cubic": int(curves), "box": box_bins}
        sizes |= {"xy": grid * grid} if joint else {"x": grid, "y": grid}
        self.classes = [name for name, size in sizes.items() if size]
        self.first = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False))
        self.token_class = np.repeat(np.arange(len(self.classes)), [sizes[name] for name in self.classes])
        self.states, self.transitions = _automaton(self.classes, joint)
        self.start, self.stop = 0, len(self.states) - 1

    def __len__(self) -> int:
        return len(self.token_class)

    @cached_property
    def names(self) -> list[str]:
        """The text of every token, for a tokenizer: ``<path_end>``, ``<ring>``, ``<box_12>``, ``<xy_3_5>``, ..."""
        texts = ["<path_end>", "<ring>"] + ["<cubic>"] * self.curves + [f"<box_{i}>" for i in range(self.box_bins)]
        if self.joint:
            return texts + [f"<xy_{x}_{y}>" for y in range(self.grid) for x in range(self.grid)]
        return texts + [f"<{axis}_{i}>" for axis in "xy" for i in range(self.grid)]

    @cached_property
    def steps_to_stop(self) -> np.ndarray:
        """The least number of tokens from each state to the end, ``(S,)`` int64: what a length limit must leave."""
        steps = np.where(np.arange(len(self.states)) == self.stop, 0, len(self.states))
        for _ in self.states:
            reached = np.where(self.transitions >= 0, steps[self.transitions] + 1, len(self.states)).min(axis=1)
            steps = np.minimum(steps, reached)
        return steps

    def valid_next(self, state: int) -> np.ndarray:
        """Which classes of token may come next, ``(C,)`` bool; none after the end."""
        return self.transitions[state] >= 0

    def run(self, tokens: Sequence[int]) -> list[int]:
        """The states on the way, ``len(tokens) + 1`` of them. Raises VLSegError for the first token out of place."""
        states = [self.start]
        for at, token in enumerate(tokens):
            if not 0 <= token < len(self):
                raise VLSegError(f"path token {at} is {token}; the vocabulary has {len(self)}")
            state = int(self.transitions[states[-1], self.token_class[token]])
            if state < 0:
                expected = ", ".join(n for n, v in zip(self.classes, self.valid_next(states[-1]), strict=True) if v)
                raise VLSegError(
                    f"path token {at}, {self.names[token]}, stands where {expected or 'nothing'} may follow"
                    f" (state: {self.states[states[-1]]})"
                )
            states.append(state)
        return states

    def accepts(self, tokens: Sequence[int]) -> bool:
        """Whether the tokens are a whole path."""
        try:
            return self.run(tokens)[-1] == self.stop
        except VLSegError:
            return False

    def finish(self, tokens: Sequence[int]) -> list[int]:
        """A path that was cut off, ended where it last could end. Raises VLSegError for a token out of place."""
        states = self.run(tokens)
        end = self.classes.index("end")
        if states[-1] == self.stop:
            return list(tokens)
        last = max(i for i, state in enumerate(states) if self.transitions[state, end] >= 0)
        return [*tokens[:last], self.first["end"]]

    def write(self, box: Sequence[int] | None, rings: Iterable[GridRing]) -> list[int]:
        """A box (four bins) and its rings as tokens, in the order given; no box: the empty mask."""
        if box is None:
            return [self.first["end"]]
        tokens = [self.first["box"] + int(i) for i in box]
        for number, ring in enumerate(rings):
            if ring.control.any() and not self.curves:
                raise VLSegError("this vocabulary has no <cubic>: make it with curves=True")
            tokens += [self.first["ring"]] * (number > 0)
            begins = ring.control & ~np.roll(ring.control, 1)
            for (x, y), curve in zip(ring.nodes.tolist(), begins.tolist(), strict=True):
                tokens += [self.first["cubic"]] * curve
                if self.joint:
                    tokens.append(self.first["xy"] + y * self.grid + x)
                else:
                    tokens += [self.first["x"] + x, self.first["y"] + y]
        return [*tokens, self.first["end"]]

    def read(self, tokens: Sequence[int]) -> tuple[tuple[int, int, int, int] | None, list[GridRing]]:
        """The box (None for the empty mask) and the rings as written. Raises VLSegError for what is no whole path."""
        tokens = [int(token) for token in tokens]
        states = self.run(tokens)
        if states[-1] != self.stop:
            raise VLSegError(f"the path breaks off after {len(tokens)} tokens (state: {self.states[states[-1]]})")
        if len(tokens) == 1:
            return None, []
        left, top, right, bottom = (token - self.first["box"] for token in tokens[:4])
        rings: list[GridRing] = []
        nodes: list[tuple[int, int]] = []
        control: list[bool] = []
        controls_due = x = 0
        for token in tokens[4:]:
            kind = self.classes[self.token_class[token]]
            value = token - self.first[kind]
            if kind in ("ring", "end"):
                if nodes:
                    rings.append(GridRing.of(nodes, control))
                nodes, control, controls_due = [], [], 0
            elif kind == "cubic":
                controls_due = 2
            elif kind == "x":
                x = value
            else:
                nodes.append((value % self.grid, value // self.grid) if kind == "xy" else (x, value))
                control.append(controls_due > 0)
                controls_due -= controls_due > 0
        return (left, top, right, bottom), rings

    def cost(self, ring: GridRing) -> int:
        """Tokens of a ring, without the <ring> in front of it."""
        return len(ring.nodes) * (1 if self.joint else 2) + ring.cubics


def _automaton(classes: Sequence[str], joint: bool) -> tuple[list[str], np.ndarray]:
    """Names of the states, and the table ``(S, C)``. With two tokens a vertex, each vertex passes a state for its y."""
    grammar: dict[str, dict[str, str]] = {}
    for state, ways in _GRAMMAR.items():
        grammar[state] = {name: target for name, target in ways.items() if name in classes}
        if "vertex" in ways:
            target = ways["vertex"]
            grammar[state]["xy" if joint else "x"] = target if joint else f"y, then {target}"
            if not joint:
                grammar[f"y, then {target}"] = {"y": target}
    grammar["stop"] = grammar.pop("stop")  # the last one
    states = [state for state in grammar if "cubic" in classes or not state.endswith(("control", "curve's end"))]
    table = np.full((len(states), len(classes)), -1, dtype=np.int64)
    for row, state in enumerate(states):
        for name, target in grammar[state].items():
            table[row, classes.index(name)] = states.index(target)
    return states, table
