"""Which pixels belong to one thing: masks that take things whole, or leave them.

A dot product decides pixel by pixel: of two look-alikes a mask takes a part of either. Here every pixel says with which
others it goes, whatever is asked, and a query's mask is averaged over them: one decision for a thing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from vlseg.models.channel_norm import ChannelNorm

MOST_CELLS = 1600  # most cells that pixels are compared with; of a larger map they are larger
REACH = 0.25  # unit of coordinates, as a share of the image's mean side
FEW = 1024  # pixels of a map that is small enough to look at all of them in a loss
SURE = 1e-3  # probabilities end here, or one sure pixel had an endless logit


@dataclass(slots=True)
class Groups:
    """Pixels and cells, each with a place and a look: a softmax says what share of a pixel's group each cell is.

    pixels: (B, 2 + E, H/4, W/4), the place's two coordinates and the look; cells: (B, 2 + E + 1, h, w), the same and a
    weight, as `to_cells` makes them of such a map. A pixel's score of a cell is the dot product of their looks, less
    the square of the distance between their places, plus the cell's weight.
    """

    pixels: torch.Tensor
    cells: torch.Tensor

    def average(self, values: torch.Tensor) -> torch.Tensor:
        """Values (B, N, H/4, W/4), each pixel's the mean over its group, in the same shape; float32."""
        return self._mean(values, self.pixels.flatten(2)).unflatten(2, self.pixels.shape[-2:])

    def average_at(self, values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """As `average`, for some pixels alone: (B, N, n). places: (n,) int64, of pixels in row-major order."""
        return self._mean(values, self.pixels.flatten(2)[..., places])

    def _mean(self, values: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """pixels: (B, 2 + E, n). Returns (B, N, n), what each pixel's group has of the values on average."""
        held = to_cells(values.float())
        # Coordinates alone survive 16 bits, where sharding casts what passes between modules; their squares would not.
        place, look = pixels.float().split([2, pixels.shape[1] - 2], 1)
        there, alike, weight = self.cells.float().flatten(2).split([2, look.shape[1], 1], 1)
        # -|p - q|^2 as a dot product: |p|^2 is the same for all cells, and a softmax does not see it
        asked = torch.cat([2 * place, look, torch.ones_like(place[:, :1])], 1)
        given = torch.cat([there, alike, weight - there.square().sum(1, keepdim=True)], 1)
        # One width for all three, as fused attention asks for, which never holds the table of pixels and cells.
        widest = -(-max(held.shape[1], asked.shape[1]) // 8) * 8
        q, k, v = (
            F.pad(x.transpose(1, 2), (0, widest - x.shape[1])).contiguous()[:, None]
            for x in (asked, given, held.flatten(2))
        )
        with torch.autocast(q.device.type, enabled=False):
            mean = F.scaled_dot_product_attention(q, k, v, scale=1.0)[:, 0]
        return mean[..., : values.shape[1]].transpose(1, 2)

    def settle(self, logits: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        """Mask logits (B, N, H/4, W/4) of which a share, (B, N) in 0..1, is decided by groups. float32."""
        own = logits.float().sigmoid()
        share = share.float()[..., None, None]
        return (share * self.average(own) + (1 - share) * own).logit(SURE)


class Grouping(nn.Module):
    """From the pyramid to `Groups`. A pixel points at a place in its thing and says what it is like; it goes with the
    cells that point there, too (how near, is learned), and are alike."""

    def __init__(self, dim: int, width: int):
        """dim: of the pyramid; width: of what pixels and cells are alike in."""
        super().__init__()
        self.read = nn.Sequential(
            ChannelNorm(2 * dim),
            nn.Conv2d(2 * dim, dim, 1),
            nn.GELU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.GELU(),
        )
        self.place = nn.Conv2d(dim, 2, 1)  # from a pixel to a place in its thing
        self.look = nn.Conv2d(dim, width, 1)
        self.weight = nn.Conv2d(dim, 1, 1)  # of a cell in every group
        nn.init.zeros_(self.place.weight)
        nn.init.zeros_(self.weight.weight)
        for layer in (self.place, self.weight):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        self.nearness = nn.Parameter(torch.tensor(1.0))

    def forward(self, fine: torch.Tensor, coarse: torch.Tensor) -> Groups:
        """fine: (B, D, H/4, W/4); coarse: (B, D, H/8, W/8)."""
        height, width = fine.shape[-2:]
        wide = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
        seen = self.read(torch.cat([fine, wide], 1))
        place, look, weight = self.place(seen).float(), self.look(seen).float(), self.weight(seen).float()
        near = F.softplus(self.nearness.float()) * 8
        place = near.sqrt() * (place + middles(height, width, place.device))
        look = look * look.shape[1] ** -0.25  # of either side of the dot product
        pixels = torch.cat([place, look], 1)
        return Groups(pixels, to_cells(torch.cat([pixels, weight], 1)))


def middles(height: int, width: int, device: torch.device) -> torch.Tensor:
    """(2, height, width) float32: the middles of pixels, from the image's, in units of `REACH` mean sides."""
    unit = REACH * (height * width) ** 0.5
    y = (torch.arange(height, device=device) + 0.5 - height / 2) / unit
    x = (torch.arange(width, device=device) + 0.5 - width / 2) / unit
    return torch.stack(torch.meshgrid(y, x, indexing="ij"))


def scattered(height: int, width: int) -> torch.Tensor:
    """(n,) int64: a quarter of a map's pixels in row-major order, one a row and column of every 4 x 4 of them, so that
    each of a cell's four corners is there as often as the others. All pixels of a map with fewer than `FEW`."""
    if height * width < FEW:
        return torch.arange(height * width)
    first = torch.tensor([0, 2, 1, 3]).repeat(-(-height // 4))[:height]
    return (torch.arange(width) % 4 == first[:, None]).flatten().nonzero()[:, 0]


def to_cells(maps: torch.Tensor) -> torch.Tensor:
    """Means of (B, N, h, w) over cells of 2 x 2 pixels, of 4 x 4 where those were more than `MOST_CELLS`, and so on."""
    height, width = maps.shape[-2:]
    side = 2
    while -(-height // side) * -(-width // side) > MOST_CELLS:
        side *= 2
    return F.avg_pool2d(maps, side, ceil_mode=True, count_include_pad=False)
