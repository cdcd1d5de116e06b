"""The mask decoder of PaliGemma's <seg> tokens: 16 codes to a mask of 64 x 64 in its box.

Written from the papers' descriptions (PaliGemma, arXiv 2407.07726; the VQ-VAE of "All in Tokens", arXiv 2301.02229).
The weights are the user's: the file `vae-oid.npz` that Google publishes beside PaliGemma.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vlseg.types import VLSegError

CODES, GRID, SIDE = 128, 4, 64
_CODEBOOK = "_vq_vae._embedding"


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a 1 x 1 one, added to what came in; ``(N, C, h, w)``."""

    def __init__(self, channels: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape."""
        return x + self.net(x)


class MaskDecoder(nn.Module):
    """Codes to masks. width: channels after the first convolution; depth: of a code."""

    def __init__(self, depth: int = 512, width: int = 128):
        super().__init__()
        self.register_buffer("codebook", torch.zeros(CODES, depth))
        layers: list[nn.Module] = [nn.Conv2d(depth, width, 1), nn.ReLU(), ResidualBlock(width), ResidualBlock(width)]
        channels = width
        for level in range(4):
            layers += [nn.ConvTranspose2d(channels, width >> level, 4, stride=2, padding=1), nn.ReLU()]
            channels = width >> level
        layers.append(nn.Conv2d(channels, 1, 1))
        self.decoder = nn.Sequential(*layers)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """``(N, 16)`` int64 in 0..127, row by row, to ``(N, 64, 64)`` float: -1 outside, 1 inside, 0 the border."""
        grid = self.codebook[codes].unflatten(1, (GRID, GRID)).permute(0, 3, 1, 2)  # type: ignore[index]
        return self.decoder(grid)[:, 0]

    @classmethod
    def from_npz(cls, path: str | Path) -> MaskDecoder:
        """Read `vae-oid.npz`. Raises VLSegError where it cannot be read or is another file."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: torch.from_numpy(np.array(file[name], dtype=np.float32)) for name in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise VLSegError(f"{path}: cannot be read as the mask decoder ({error})") from error
        try:
            codebook, first = arrays[_CODEBOOK], arrays["decoder.0.weight"]
            decoder = cls(codebook.shape[1], first.shape[0])
            weights = {name: value for name, value in arrays.items() if name.startswith("decoder.")}
            decoder.load_state_dict({"codebook": codebook, **weights})
        except (KeyError, IndexError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:150]
            raise VLSegError(f"{path}: is not PaliGemma's mask decoder vae-oid.npz ({reason})") from error
        return decoder.eval()


def place(mask: torch.Tensor, box: Sequence[float], size: tuple[int, int], mask_threshold: float) -> np.ndarray:
    """``(H, W)`` bool: a mask ``(64, 64)`` in -1..1 stretched over its box (x0, y0, x1, y1 in pixels), bilinear at
    pixel centres, where (value + 1) / 2 > mask_threshold."""
    full = np.zeros(size, dtype=bool)
    left, top = (max(0, int(np.ceil(edge - 0.5))) for edge in box[:2])
    right, bottom = (
        min(limit, int(np.ceil(edge - 0.5))) for edge, limit in zip(box[2:], (size[1], size[0]), strict=True)
    )
    if right <= left or bottom <= top:
        return full
    x = (torch.arange(left, right) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
    y = (torch.arange(top, bottom) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
    grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], -1)[None].float()
    values = nn.functional.grid_sample(
        mask.float().cpu()[None, None], grid, mode="bilinear", padding_mode="border", align_corners=False
    )[0, 0]
    full[top:bottom, left:right] = ((values + 1) / 2 > mask_threshold).numpy()
    return full
