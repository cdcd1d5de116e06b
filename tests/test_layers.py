"""Imports go one way (DESIGN.md, section 2), and the light rooms stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "vlseg"

# A room may import rooms of a lower number and itself; never its neighbours of the same number.
ORDER: list[tuple[str, ...]] = [
    ("types",),
    ("config",),
    ("masks",),
    ("worlds",),
    ("data", "metrics", "losses"),
    ("models",),
    ("systems",),
    ("evaluation",),
    ("training",),
    ("segmenter",),
    ("bulk", "export", "serving", "client"),
    ("demo",),
    ("cli",),
]
RANK = {room: number for number, rooms in enumerate(ORDER) for room in rooms}
ANYWHERE = {"version"}


def imported(tree: ast.AST, module: str, is_package: bool) -> list[tuple[int, str, bool]]:
    """(line, dotted module of vlseg, inside a function) of every import, relative and import_module("...") included."""
    found: list[tuple[int, str, bool]] = []

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((node.lineno, alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            base = parts[: len(parts) - node.level + is_package] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{target}.{alias.name}" for alias in node.names] if target == "vlseg" else [target]
            found.extend((node.lineno, name, inside) for name in names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                found.append((node.lineno, node.args[0].value, inside))
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(tree, False)
    return [(line, name, inside) for line, name, inside in found if name.split(".")[0] == "vlseg"]


def breaches(source: str, module: str, is_package: bool = False) -> list[str]:
    """What one module's source does against the order of the rooms."""
    room = module.split(".")[1]
    out = []
    for line, name, inside in imported(ast.parse(source), module, is_package):
        parts = name.split(".")
        other = parts[1] if len(parts) > 1 else ""
        if other == room or other in ANYWHERE or name == "vlseg.__version__":
            continue
        if room == "types" and other == "masks" and inside:
            continue  # the one exception: Answer.mask, Result.overlay and Result.svg, called by whoever has masks
        if other not in RANK:
            out.append(f"{module}:{line} imports {name}, which is no room: import from the room that defines it")
        elif RANK[other] >= RANK[room]:
            out.append(f"{module}:{line} imports {name}: {other} is not to the left of {room}")
    return out


def modules() -> list[tuple[Path, str]]:
    out = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        out.append((path, ".".join(parts)))
    return out


def test_imports_go_one_way():
    found = modules()
    assert len(found) > 10
    wrong = []
    for path, module in found:
        room = module.split(".")[1] if "." in module else ""
        if not room or room in ANYWHERE:
            continue  # vlseg/__init__.py exports lazily from every room
        if room not in RANK:
            wrong.append(f"{module} is in no room of the order")
            continue
        wrong += breaches(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("from vlseg.models import x", "vlseg.masks.rle"),
        ("import vlseg.cli.main", "vlseg.serving.app"),
        ("def f():\n    from vlseg.training.loop import train", "vlseg.evaluation.run"),
        ("def f():\n    from ..losses import mask", "vlseg.data.coco"),
        ("from .. import systems", "vlseg.models.native"),
        ("from ..metrics.iou import x", "vlseg.losses.mask"),
        ("from vlseg import Segmenter", "vlseg.systems.sam"),
        ("import vlseg", "vlseg.systems.sam"),
        ("import importlib\nimportlib.import_module('vlseg.cli')", "vlseg.bulk.run"),
        ("from vlseg.masks.rle import decode", "vlseg.types"),
        ("from vlseg.config import load", "vlseg.types"),
        ("if x:\n    class A:\n        from vlseg.export import y", "vlseg.serving.app"),
    ],
)
def test_checker_finds_a_breach(source: str, module: str):
    assert len(breaches(source, module)) == 1


@pytest.mark.parametrize(
    ("source", "module", "is_package"),
    [
        ("from vlseg.types import VLSegError", "vlseg.config", False),
        ("def f():\n    from vlseg.masks.rle import decode", "vlseg.types", False),
        ("from .rle import decode\nfrom . import svg", "vlseg.masks.drawing", False),
        ("from .rle import decode\nfrom ..types import RLE", "vlseg.masks", True),
        ("from vlseg.version import __version__\nfrom vlseg import __version__ as v", "vlseg.masks.rle", False),
        ("import numpy\nfrom vlsegment import cli", "vlseg.masks.rle", False),
    ],
)
def test_checker_accepts_what_is_right(source: str, module: str, is_package: bool):
    assert breaches(source, module, is_package) == []


def loaded_after(imports: str, names: tuple[str, ...]) -> list[str]:
    code = f"import sys\n{imports}\nprint([n for n in {names!r} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, timeout=60, check=True
    )
    return ast.literal_eval(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("module", ["vlseg", "vlseg.types", "vlseg.config"])
def test_light_imports_stay_light(module: str):
    assert loaded_after(f"import {module}", ("torch", "numpy", "PIL", "transformers")) == []


@pytest.mark.parametrize("room", ["masks", "worlds"])
def test_rooms_without_torch(room: str):
    names = [name for _, name in modules() if name.startswith(f"vlseg.{room}")]
    assert names
    heavy = ("torch", "torchvision", "transformers", "datasets")
    assert loaded_after("\n".join(f"import {n}" for n in names), heavy) == []


def test_the_light_check_can_fail():
    assert loaded_after("import numpy", ("torch", "numpy")) == ["numpy"]
