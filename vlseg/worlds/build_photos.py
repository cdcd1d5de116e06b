"""Build ``assets/photos``: small object-free crops of free photographs in scikit-image and scikit-learn.

For developers: ``python -m vlseg.worlds.build_photos`` needs both packages installed, not their downloads. The gray
textures are toned; every source and change is written to ``assets/LICENSE-photos``.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vlseg.types import VLSegError
from vlseg.worlds.atlas import ASSETS

SIDE = 320
SOURCES = {
    "gravel": ("skimage", "data/gravel.png", "CC0 1.0, CC0Textures.com, Gravel04, via scikit-image"),
    "brick": ("skimage", "data/brick.png", "CC0 1.0, CC0Textures.com, Bricks25, via scikit-image"),
    "grass": ("skimage", "data/grass.png", "CC0, DeviantArt user linolafett, via scikit-image"),
    "coffee": ("skimage", "data/coffee.png", "CC0 by the photographer Rachel Michetti, via scikit-image"),
    "camera": ("skimage", "data/camera.png", "CC0 by the photographer Lav Varshney, via scikit-image"),
    "retina": ("skimage", "data/retina.jpg", "CC0 1.0, Mikael Haeggstroem, Wikimedia Commons, via scikit-image"),
    "tissue": ("skimage", "data/ihc.png", "No known copyright restrictions, via scikit-image"),
    "launch": ("skimage", "data/rocket.jpg", "Public domain (CC0), SpaceX, via scikit-image"),
    "china": ("sklearn", "datasets/images/china.jpg", "CC BY 2.0, flickr.com/photos/danielbuechele/6061409035"),
    "flower": ("sklearn", "datasets/images/flower.jpg", "CC BY 2.0, flickr.com/photos/vultilion/6056698931"),
}
# (file, source, box in source pixels, dark and light tone for gray sources)
CROPS: list[tuple[str, str, tuple[int, int, int, int], tuple[str, str] | None]] = [
    ("gravel-gray", "gravel", (0, 0, 400, 400), ("#1c1a1a", "#d8d2cc")),
    ("gravel-warm", "gravel", (112, 112, 512, 512), ("#2e1d10", "#e6c9a0")),
    ("sand-fine", "gravel", (0, 0, 512, 512), ("#8a6b3c", "#f4dfae")),
    ("brick-red", "brick", (0, 0, 512, 512), ("#571c12", "#d9a58c")),
    ("brick-near", "brick", (0, 260, 250, 510), ("#2b2724", "#c9c0b2")),
    ("grass-green", "grass", (0, 0, 400, 400), ("#0c2408", "#a9d468")),
    ("grass-dry", "grass", (112, 112, 512, 512), ("#33260c", "#e8d48c")),
    ("lawn", "camera", (408, 392, 512, 504), ("#12300c", "#93c060")),
    ("wood", "coffee", (475, 120, 600, 400), None),
    ("wood-corner", "coffee", (0, 0, 150, 90), None),
    ("veins", "retina", (420, 420, 1120, 1120), None),
    ("tissue", "tissue", (0, 0, 512, 512), None),
    ("tissue-blue", "tissue", (190, 150, 350, 310), None),
    ("dusk", "launch", (205, 0, 300, 320), None),
    ("sky-lake", "china", (365, 60, 535, 268), None),
    ("sky", "china", (370, 0, 600, 132), None),
    ("leaves-dark", "flower", (0, 0, 150, 427), None),
    ("leaves-far", "flower", (470, 0, 640, 365), None),
]


def load(source: str) -> Image.Image:
    """The whole source photograph. Raises VLSegError where its package is not installed."""
    package, inside, _ = SOURCES[source]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise VLSegError(f"{package} is not installed: pip install scikit-image scikit-learn")
    return Image.open(Path(spec.origin).parent / inside)


def crop(source: str, box: tuple[int, int, int, int], tones: tuple[str, str] | None) -> Image.Image:
    """One crop, toned where it is gray, its longer side at most ``SIDE`` pixels."""
    picture = load(source).crop(box)
    if tones is None:
        picture = picture.convert("RGB")
    else:
        gray = np.asarray(picture.convert("L"), np.float32)
        low, high = np.percentile(gray, (1, 99))
        flat = np.clip((gray - low) / max(high - low, 1) * 255, 0, 255).astype(np.uint8)
        picture = ImageOps.colorize(Image.fromarray(flat), tones[0], tones[1])
    ratio = SIDE / max(picture.size)
    if ratio < 1:
        picture = picture.resize(
            (round(picture.width * ratio), round(picture.height * ratio)), Image.Resampling.LANCZOS
        )
    return picture


def build(out: Path) -> None:
    """Write the crops to ``out/photos`` and their sources to ``out/LICENSE-photos``."""
    (out / "photos").mkdir(parents=True, exist_ok=True)
    lines = ["The pictures in photos/ are small crops (scaled, some toned) of these photographs:", ""]
    for name, source, box, tones in CROPS:
        crop(source, box, tones).save(out / "photos" / f"{name}.jpg", quality=82, optimize=True)
        lines.append(f"photos/{name}.jpg: {SOURCES[source][2]}")
    lines += ["", "CC BY 2.0: https://creativecommons.org/licenses/by/2.0/"]
    lines += ["CC0 1.0: https://creativecommons.org/publicdomain/zero/1.0/", ""]
    (out / "LICENSE-photos").write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    """Command line of the builder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ASSETS)
    build(parser.parse_args().out)


if __name__ == "__main__":
    main()
