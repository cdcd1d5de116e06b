"""The scenes of benchmarks/foreign_scenes.py: what they show and what is said of them."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from vlseg.evaluation.scenes import score_scenes
from vlseg.models.presets import build_preset
from vlseg.worlds.atlas import entries

FOLDER = Path(__file__).parents[2] / "benchmarks"
MODULES = ("foreign_scenes", "foreign_pictures", "foreign_words", "foreign_nouns")


@pytest.fixture(scope="module")
def foreign():
    """The script; `nouns` and `pictures`, modules that it stands on, are attributes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        for name in MODULES:
            patch.delitem(sys.modules, name, raising=False)
        module = importlib.import_module("foreign_scenes")
        module.nouns, module.pictures = sys.modules["foreign_nouns"], sys.modules["foreign_pictures"]
        yield module
        for name in MODULES:
            del sys.modules[name]


@pytest.fixture(scope="module")
def scenes(foreign):
    try:
        foreign.Glyphs()
    except foreign.FontError as error:
        pytest.skip(str(error))
    return list(foreign.generate(24, seed=7, queries=10))


def test_names_are_those_of_the_atlas(foreign):
    names = {entry["name"] for entry in entries()}
    alike = [name for group in foreign.nouns.ALIKE for name in group]
    assert names >= {*foreign.nouns.RENAMED, *foreign.nouns.SAID, *foreign.nouns.SKIPPED, *alike}
    nouns = foreign.nouns.nouns()
    assert len({n.code for n in nouns}) == len({n.said for n in nouns}) == len(nouns) > 400
    said = {n.said: n for n in nouns}
    assert {said[k].plural for k in ("mouse", "cup of tea", "bus", "strawberry")} == {
        "mice", "cups of tea", "buses", "strawberries"
    }  # fmt: skip
    assert foreign.nouns.apart(said["dog"], said["laptop"])
    assert not foreign.nouns.apart(said["penguin"], said["bird"])  # a keyword
    assert not foreign.nouns.apart(said["green apple"], said["red apple"])  # a word
    assert not foreign.nouns.apart(said["ship"], said["ferry"])  # a family with blurred edges


def test_the_same_arguments_give_the_same_scenes(foreign, scenes):
    again = next(foreign.generate(1, seed=7, queries=10))
    assert (again.image == scenes[0].image).all()
    assert (again.ids == scenes[0].ids).all()
    assert again.queries == scenes[0].queries
    assert (next(foreign.generate(1, seed=8)).ids != scenes[0].ids).any()


def test_masks_and_boxes(scenes):
    for scene in scenes:
        assert scene.image.shape == (256, 256, 3)
        assert scene.image.dtype == scene.ids.dtype == np.uint8
        assert set(np.unique(scene.ids)) == set(range(7))
        for i, thing in enumerate(scene.objects):
            ys, xs = np.nonzero(scene.ids == i + 1)
            assert thing.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert len(xs) == thing.area >= 0.6 * thing.whole
            assert 24 <= max(np.ptp(xs), np.ptp(ys)) + 1 <= 110


def test_queries_are_true(foreign, scenes):
    """Judged anew from the masks and the words alone."""
    seen = set()
    for scene in scenes:
        centres = [np.argwhere(scene.ids == i + 1).mean(0)[::-1] for i in range(len(scene.objects))]
        said = [t.noun.said for t in scene.objects]
        for query in scene.queries:
            assert not set(query.targets) & set(query.distractors)
            assert bool(query.targets) != query.kind.startswith("absent")
            text, target = query.text.removeprefix("the "), query.targets[0] if query.targets else None
            if query.kind == "noun":
                assert [i for i, name in enumerate(said) if name == text] == list(query.targets)
            elif query.kind == "absent: noun":
                assert not any(text == name or text.startswith(name + " ") for name in said)
            elif query.kind == "all":
                assert len(query.targets) == said.count(said[target]) > 1
            elif text.startswith(("leftmost ", "rightmost ", "topmost ")):
                most, name = text.split(" ", 1)
                axis, sign = {"leftmost": (0, 1), "rightmost": (0, -1), "topmost": (1, 1)}[most]
                rivals = [i for i, n in enumerate(said) if n == name]
                assert target == min(rivals, key=lambda i: sign * centres[i][axis])
                seen.add("most")
            for phrase, axis, sign in ((" left of the ", 0, -1), (" above the ", 1, -1), (" below the ", 1, 1)):
                if phrase in query.text and query.kind.endswith("relation"):
                    name, other = text.replace(" to the left of ", " left of ").split(phrase)
                    anchor = said.index(other)
                    past = [
                        i for i, n in enumerate(said) if n == name and sign * (centres[i] - centres[anchor])[axis] > 0
                    ]
                    assert past == list(query.targets)
                    seen.add(query.kind)
    assert seen == {"most", "relation", "absent: relation"}
    share = np.mean([not q.targets for s in scenes for q in s.queries])
    assert 0.08 < share < 0.3


def test_scores_and_sheet(foreign, scenes, tmp_path):
    words = sorted({word for s in scenes for q in s.queries for word in q.text.split()})
    model, processor = build_preset("tiny", words, nouns=8, seed=0)
    few = scenes[:3]
    cases = score_scenes(model, processor, few)
    assert len(cases) == sum(len(s.queries) for s in few)
    assert [c.absent for c in cases] == [not q.targets for s in few for q in s.queries]
    result = foreign.measure(model, processor, lambda: iter(few))
    assert result["queries"] == len(cases)
    assert "| every query | 30 |" in foreign.table(result)
    foreign.sheet(few, str(tmp_path / "sheet.png"))


def test_a_missing_font_is_one_line(foreign, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["foreign_scenes.py", "--font", "no-such-font.ttf"])
    with pytest.raises(SystemExit, match="2"):
        foreign.main()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "no-such-font.ttf" in err
