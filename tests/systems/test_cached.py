"""Image features on disk: equal answers without the encoder, bounded, and never those of another model."""

from __future__ import annotations

import logging
import os
import shutil

import numpy as np
import pytest
import torch

from vlseg.masks.rle import decode
from vlseg.segmenter import Segmenter
from vlseg.systems.base import EncodedImage, Encoder, PathSystem, SoftSystem
from vlseg.systems.feature_files import FeatureFiles
from vlseg.systems.registry import fingerprint
from vlseg.systems.specimens import QUERIES, pictures
from vlseg.types import VLSegError

SYSTEMS = [
    "clipseg",
    "grounded-sam2",
    "open_clip",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("sam3", "florence2", "qwen3-vl+sam2", "paligemma")),
]


def watch(segmenter: Segmenter, monkeypatch) -> list[int]:
    """How many images the encoder within sees, call by call."""
    inner, seen = segmenter._plain.system, []
    encode = inner.encode_batch

    def counted(images):
        seen.extend([len(images)] if images else [])
        return encode(images)

    monkeypatch.setattr(inner, "encode_batch", counted)
    return seen


def files_in(folder) -> list:
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_second_run_encodes_nothing(name, specimen, tmp_path, monkeypatch):
    model = f"{name}={','.join(map(str, specimen(name)))}"
    options = {"presence_threshold": 0.0}
    plain = Segmenter(model, "cpu")(pictures(), QUERIES[:3], **options)
    first = Segmenter(model, "cpu", cache=tmp_path)
    seen = watch(first, monkeypatch)
    once = first(pictures(), QUERIES[:3], **options)
    assert seen == [2]
    assert len(files_in(tmp_path)) == 2
    second = Segmenter(model, "cpu", cache=tmp_path)  # as in another process
    seen = watch(second, monkeypatch)
    again = second(pictures(), QUERIES[:3], **options)
    assert seen == []
    masks = [decode(segment.rle) for answer in plain[0] for segment in answer.segments]
    assert any(0.05 <= mask.mean() <= 0.95 for mask in masks)
    for a, b, c in zip(plain, once, again, strict=True):
        assert a.answers == b.answers == c.answers
        assert a.protocol == c.protocol


def test_the_native_model_and_what_it_can_do(tiny_folder, queries, tmp_path, monkeypatch):
    plain = Segmenter(tiny_folder, "cpu")
    Segmenter(tiny_folder, "cpu", cache=tmp_path)(pictures(), queries)
    kept = Segmenter(tiny_folder, "cpu", cache=tmp_path)
    assert isinstance(kept.system, Encoder)
    assert isinstance(kept.system, SoftSystem)
    assert isinstance(kept.system, PathSystem) == isinstance(plain.system, PathSystem)
    monkeypatch.setattr(kept._plain.system.model, "encode_image", lambda *_: pytest.fail("encoded"))
    assert [r.answers for r in kept(pictures(), queries)] == [r.answers for r in plain(pictures(), queries)]
    for own, other in zip(
        kept.system.soft_answers(pictures()[0], queries),
        plain.system.soft_answers(pictures()[0], queries),
        strict=True,
    ):
        assert own.at((120, 160), 0.0) == other.at((120, 160), 0.0)
    kept(pictures()[0], queries, refine="none")


def test_mixed_and_repeated_images(specimen, tmp_path, monkeypatch):
    one, two = pictures()
    kept = Segmenter(f"clipseg={specimen('clipseg')[0]}", "cpu", cache=tmp_path)
    kept(one, QUERIES[0])
    seen = watch(kept, monkeypatch)
    kept([two, one, two.copy(), one], QUERIES[:2])
    assert seen == [1]
    changed = np.asarray(one).copy()
    changed[0, 0, 0] ^= 1
    kept(changed, QUERIES[0])
    assert seen == [1, 1]


def test_other_weights_settings_and_systems_are_misses(specimen, tmp_path, monkeypatch):
    folder = specimen("clipseg")[0]
    kept = Segmenter(f"clipseg={folder}", "cpu", cache=tmp_path / "c")
    keys = {kept.system.key(pictures()[0])}
    moved = shutil.copytree(folder, tmp_path / "moved")  # keeps times: the same model elsewhere
    assert Segmenter(str(moved), "cpu", cache=tmp_path / "c").system.key(pictures()[0]) in keys
    keys.add(Segmenter(f"clipseg={folder}", "cpu", "bfloat16", cache=tmp_path / "c").system.key(pictures()[0]))
    weights = moved / "model.safetensors"
    before = weights.stat()
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))  # the same size and time
    keys.add(Segmenter(f"clipseg={moved}", "cpu", cache=tmp_path / "c").system.key(pictures()[0]))
    weights.write_bytes(data)
    keys.add(Segmenter(f"clipseg={moved}", "cpu", cache=tmp_path / "c").system.key(pictures()[0]))
    settings = moved / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace("64", "80"))
    keys.add(Segmenter(f"clipseg={moved}", "cpu", cache=tmp_path / "c").system.key(pictures()[0]))
    keys.add(Segmenter(f"open_clip={specimen('open_clip')[0]}", "cpu", cache=tmp_path / "c").system.key(pictures()[0]))
    assert len(keys) == 6
    assert fingerprint(folder) == fingerprint(f"clipseg={folder}")


@pytest.mark.parametrize("damage", [b"", b"abc", None])
def test_a_damaged_entry_is_a_miss_said_once(damage, specimen, tmp_path, monkeypatch, caplog):
    model = f"clipseg={specimen('clipseg')[0]}"
    wanted = Segmenter(model, "cpu", cache=tmp_path)(pictures(), QUERIES[:2])
    for file in files_in(tmp_path):
        file.write_bytes(file.read_bytes()[:-40] if damage is None else damage)
    kept = Segmenter(model, "cpu", cache=tmp_path)
    seen = watch(kept, monkeypatch)
    with caplog.at_level(logging.WARNING, "vlseg"):
        again = kept(pictures(), QUERIES[:2])
        assert [r.answers for r in again] == [r.answers for r in wanted]
    assert seen == [2]
    assert len([r for r in caplog.records if "not readable" in r.message]) == 1
    kept(pictures(), QUERIES[:2])
    assert seen == [2]  # written anew


def test_the_folder_is_bounded(tmp_path):
    files = FeatureFiles(tmp_path, torch.device("cpu"), limit=100_000)
    entry = EncodedImage((4, 5), {"a": torch.rand(2500)}, 10_000)
    for number in range(8):
        files.put(f"{number:064x}", entry)
        os.utime(files._path(f"{number:064x}"), ns=(number, number))
    assert files.get(f"{0:064x}") is not None  # used: no longer the oldest
    for number in range(8, 11):
        files.put(f"{number:064x}", entry)
    assert sum(file.stat().st_size for file in files_in(tmp_path)) <= 100_000
    assert files.get(f"{1:064x}") is None
    assert files.get(f"{0:064x}") is not None
    assert torch.equal(files.get(f"{10:064x}").features["a"], entry.features["a"])
    files.put("f" * 64, EncodedImage((4, 5), torch.rand(50_000), 200_000))
    assert files.get("f" * 64) is None
    assert FeatureFiles(tmp_path, torch.device("cpu"))._bytes == sum(f.stat().st_size for f in files_in(tmp_path))


def test_trees_come_back_as_they_were(tmp_path):
    files = FeatureFiles(tmp_path, torch.device("cpu"))
    half = torch.rand(3, 4).bfloat16()
    shared = torch.arange(6)
    inner = EncodedImage((2, 2), [None, 1.5, "x"], 3)
    tree = {"half": half, "t": (shared[:3], [shared[2:], True]), "inner": inner, "image": pictures()[0], 7: ()}
    files.put("ab" * 32, EncodedImage((120, 160), tree, 9))
    found = files.get("ab" * 32)
    assert (found.size, found.bytes) == ((120, 160), 9)
    assert torch.equal(found.features["half"], half)
    assert torch.equal(found.features["t"][1][0], shared[2:])
    assert found.features["t"][1][1] is True
    assert isinstance(found.features["t"], tuple)
    assert found.features["inner"].features == inner.features
    assert found.features["image"] == pictures()[0]
    assert found.features[7] == ()


def test_what_cannot_be_kept_is_said_once(tmp_path, caplog):
    files = FeatureFiles(tmp_path, torch.device("cpu"))
    with caplog.at_level(logging.WARNING, "vlseg"):
        files.put("ab" * 32, EncodedImage((1, 1), object(), 1))
        files.put("cd" * 32, EncodedImage((1, 1), object(), 1))
    assert len(caplog.records) == 1
    assert files_in(tmp_path) == []


def test_a_file_names_no_class_but_ours(tmp_path):
    from safetensors.torch import save_file

    files = FeatureFiles(tmp_path, torch.device("cpu"))
    (tmp_path / "ab").mkdir()
    entry = '{"size": [1, 1], "bytes": 1, "tree": ["class", "subprocess", "Popen", {"args": "true"}]}'
    save_file({"0": torch.zeros(1)}, tmp_path / "ab" / f"{'ab' * 32}.safetensors", metadata={"entry": entry})
    assert files.get("ab" * 32) is None


def test_refused(segmenter, tmp_path, specimen):
    with pytest.raises(VLSegError, match="models by name or folder"):
        Segmenter(segmenter.system, cache=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(VLSegError, match=r"--cache .*it is a file"):
        Segmenter(f"clipseg={specimen('clipseg')[0]}", cache=tmp_path / "file")


def test_tiles_and_refiners_stand_around_it(specimen, tmp_path, monkeypatch):
    model = f"clipseg={specimen('clipseg')[0]}"
    options = {"device": "cpu", "tile": 64, "refine": f"sam2={specimen('grounded-sam2')[1]}"}
    wanted = Segmenter(model, **options)(pictures()[0], QUERIES[:2], presence_threshold=0.0)
    Segmenter(model, **options, cache=tmp_path)(pictures()[0], QUERIES[:1])
    kept = Segmenter(model, **options, cache=tmp_path)
    seen = watch(kept, monkeypatch)
    assert kept(pictures()[0], QUERIES[:2], presence_threshold=0.0).answers == wanted.answers
    assert seen == []


def test_the_verb(specimen, tmp_path, capsys):
    from vlseg.cli.app import main

    pictures()[0].save(tmp_path / "a.png")
    call = ["segment", str(tmp_path / "a.png"), "a dog", "--model", f"clipseg={specimen('clipseg')[0]}", "--json"]
    call += ["--device", "cpu"]
    outs = []
    for more in ([], ["--cache", str(tmp_path / "c")], ["--cache", str(tmp_path / "c"), "--cache-size", "1"]):
        assert main([*call, *more]) == 0
        outs.append(capsys.readouterr().out.split('"seconds"')[0])
    assert len(set(outs)) == 1
    assert len(files_in(tmp_path / "c")) == 1
    kept = files_in(tmp_path / "c")
    before = [file.stat().st_mtime_ns for file in kept]
    bulk = [*call[:-3], *call[-2:], "--engine", "local", "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*bulk, "--cache", str(tmp_path / "c")]) == 0
    assert files_in(tmp_path / "c") == kept
    assert [file.stat().st_mtime_ns for file in kept] > before  # used
    assert main([*call, "--cache-size", "1"]) == 2
    assert "--cache" in capsys.readouterr().err
