"""From words to classes: names, synonyms, kinds, heads of noun phrases, and a CLIP for the rest."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vlseg.systems.class_names import ClassNames, Match, aliases, candidates, normal, singular
from vlseg.systems.clip_text import TEMPLATE, ClipText, clip_text
from vlseg.systems.specimens import spread, write_clip_tokenizer
from vlseg.systems.synonyms import groups, kinds
from vlseg.types import VLSegError

LABELS = ["person", "traffic light", "cup", "dog", "wall-brick", "tree-merged", "N/A", "sofa", "sports ball", "bus"]


@pytest.fixture(scope="module")
def names() -> ClassNames:
    return ClassNames(LABELS)


@pytest.mark.parametrize(
    ("query", "label", "how"),
    [
        ("person", "person", "name"),
        ("The People", "person", "name"),
        ("the two big traffic lights on the left", "traffic light", "name"),
        ("the stoplight", "traffic light", "synonym"),
        ("a red mug", "cup", "synonym"),
        ("mug left of the dog", "cup", "synonym"),
        ("dog chasing a ball", "dog", "name"),
        ("the dog catching", "dog", "name"),
        ("the couch", "sofa", "synonym"),
        ("the brick wall", "wall-brick", "name"),
        ("TREES", "tree-merged", "name"),
        ("football", "sports ball", "kind"),
        ("buses", "bus", "name"),
        ("man far left", "person", "kind"),
    ],
)
def test_queries_and_their_classes(names, query, label, how):
    match = names.match(query)
    assert [LABELS[number] for number in match.classes] == [label]
    assert match.how in ((how,) if how != "kind" else ("kind", "synonym"))
    assert match.reason is None


@pytest.mark.parametrize("query", ["zebra", "the N/A", "on the left", "...", "catwalk", "dogma", "personal"])
def test_no_class(names, query):
    match = names.match(query)
    assert match.classes == ()
    assert (
        match.reason
        == "no class of this name; classes: person, traffic light, cup, dog, wall-brick, tree-merged, ... (9)"
    )


def test_the_longest_name_wins():
    both = ClassNames(["light", "traffic light", "dog", "hot dog"])
    assert both.match("the traffic light").classes == (1,)
    assert both.match("the light").classes == (0,)
    assert both.match("a hot dog").classes == (3,)
    assert both.match("a brown dog").classes == (2,)


def test_doing_ends_the_head_but_things_in_ing_do_not():
    several = ClassNames(["ball", "washing machine", "building", "parking meter", "ring", "dog"])
    for query, number in (
        ("dog chasing a ball", 5),
        ("the old washing machine", 1),
        ("the tall building", 2),
        ("a grey parking meter by the road", 3),
        ("gold ring", 4),
    ):
        assert several.match(query).classes == (number,), query


def test_a_label_typed_out_is_itself():
    """Two labels may share an alias; their own spelling tells them apart."""
    walls = ClassNames(["wall-brick", "wall-stone"])
    assert walls.match("wall").classes == (0, 1)
    assert walls.match("wall-stone").classes == (1,)


@pytest.mark.parametrize(
    ("word", "one"),
    [
        ("dogs", "dog"),
        ("people", "person"),
        ("glasses", "glass"),
        ("benches", "bench"),
        ("ponies", "pony"),
        ("pies", "pie"),
        ("knives", "knife"),
        ("bus", "bus"),
        ("grass", "grass"),
        ("scissors", "scissors"),
        ("tomatoes", "tomato"),
        ("gas", "gas"),
        ("iris", "iris"),
    ],
)
def test_singular(word, one):
    assert singular(word) == one
    assert singular(one) == one


def test_phrases_from_whole_to_head():
    assert candidates("the two big traffic lights on the left") == [
        "two big traffic lights on the left",
        "two big traffic light",
        "big traffic light",
        "traffic light",
        "light",
    ]
    assert normal("  The RED, mugs! ") == "red mug"
    assert candidates("the") == []
    assert aliases("door-stuff") == ["door"]
    assert aliases("wall-brick") == ["wall brick", "wall"]
    assert aliases("dining table; board") == ["dining table", "board"]
    assert aliases("N/A") == []


def test_synonyms_are_in_the_form_that_is_looked_up():
    """A table entry that `normal` would change could never be found."""
    for word, others in groups().items():
        assert normal(word) == word
        assert len(others) > 1
        assert all(groups()[other] == others for other in others)
    for word, named in kinds().items():
        assert normal(word) == word
        assert named


def test_matches_are_kept(names):
    class Counting:
        name = "counting"
        asked = 0

        def nearest(self, text: str) -> tuple[int, float] | None:
            self.asked += 1
            return (3, 0.9) if "beagle" in text else None

    near = Counting()
    kept = ClassNames(LABELS, near)
    for _ in range(3):
        assert kept.match("the beagle") == Match((3,), "clip")
        assert kept.match("gizmo").reason is not None
        assert kept.match("dog").how == "name"
    assert near.asked == 2  # what words alone find is not asked


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A random CLIP: (folder, transformers' own model)."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    rows = write_clip_tokenizer(folder, length=24)
    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**tiny, "projection_dim": 16, "vocab_size": rows, "max_position_embeddings": 24, "eos_token_id": rows - 1}
    vision = {**tiny, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    spread(model, 4.0)
    model.save_pretrained(folder)
    return folder, model


def plain(clip_folder, texts: list[str]) -> torch.Tensor:
    """Unit vectors by transformers alone, one text at a time."""
    from transformers import AutoTokenizer

    folder, model = clip_folder
    tokenizer, made = AutoTokenizer.from_pretrained(folder), []
    for text in texts:
        inputs = tokenizer([text], return_tensors="pt", truncation=True, max_length=24)
        with torch.inference_mode():
            found = model.get_text_features(**inputs)
        made.append(F.normalize(getattr(found, "pooler_output", found), dim=-1)[0])
    return torch.stack(made)


def test_clip_text_is_that_of_the_library(clip_folder):
    texts = ["dog", "a very long description of a thing that nobody reads", "x"]
    own = ClipText(clip_folder[0], LABELS, least=-1.0, device="cpu")
    torch.testing.assert_close(own.embed(texts), plain(clip_folder, texts), atol=1e-5, rtol=1e-4)
    labels = plain(clip_folder, [TEMPLATE.format(label) for label in LABELS])
    for query in ("the beagle", "bottle"):
        cosines = labels @ plain(clip_folder, [TEMPLATE.format(query)])[0]
        number, cosine = own.nearest(query)
        assert number == int(cosines.argmax())
        assert cosine == pytest.approx(float(cosines.max()), abs=1e-5)
    assert own.nearest("dog")[0] == LABELS.index("dog")


def test_what_is_not_near_enough_is_no_match(clip_folder):
    far = ClipText(clip_folder[0], LABELS, least=1.1, device="cpu")
    assert far.nearest("beagle") is None
    assert ClassNames(LABELS, far).match("beagle").reason is not None
    near = ClassNames(LABELS, ClipText(clip_folder[0], LABELS, least=-1.0, device="cpu"))
    assert near.match("beagle").how == "clip"
    assert near.match("mug").how == "synonym"


def test_labels_are_embedded_in_one_batch(clip_folder, monkeypatch):
    sizes = []
    embed = ClipText.embed
    monkeypatch.setattr(ClipText, "embed", lambda self, texts: sizes.append(len(texts)) or embed(self, texts))
    clip_text(str(clip_folder[0]), LABELS, torch.device("cpu"))
    assert sizes == [len(LABELS)]
    assert clip_text(None, LABELS, torch.device("cpu")) is None


def test_a_folder_that_is_no_clip(tmp_path):
    with pytest.raises(VLSegError, match="cannot be loaded"):
        ClipText(tmp_path, LABELS)
