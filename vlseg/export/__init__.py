"""Results in other tools' formats: COCO, YOLO, Label Studio, CVAT, supervision, PNG, SVG; models in other runtimes'."""
