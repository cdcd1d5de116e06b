"""Pixels, RLE, outlines, COCO polygons, SVG paths, pictures of them. Needs numpy, Pillow, pycocotools; no torch."""
