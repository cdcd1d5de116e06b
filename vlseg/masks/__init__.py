"""Pixels, RLE, outlines, polygons, SVG paths, path tokens, pictures of them; numpy, Pillow, pycocotools, no torch."""
