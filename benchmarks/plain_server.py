"""The server that people write in ten lines, one request after the other; what benchmarks/serving.py compares with."""

import socket
import sys
import threading

import numpy as np
import uvicorn
from fastapi import FastAPI, Form, UploadFile
from PIL import Image

from vlseg import Segmenter

app, segmenter, lock = FastAPI(), Segmenter(sys.argv[1] if len(sys.argv) > 1 else None), threading.Lock()


@app.post("/v1/segment")
def segment(file: UploadFile, query: list[str] = Form()) -> dict:  # noqa: B008  (FastAPI's way)
    """One call, alone."""
    with lock:
        return segmenter(Image.open(file.file), query).to_dict()


if __name__ == "__main__":
    segmenter(np.zeros((64, 64, 3), np.uint8), "warm-up")
    with socket.create_server(("127.0.0.1", 0)) as sock:
        print(f"plain: serving on http://127.0.0.1:{sock.getsockname()[1]}", file=sys.stderr, flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[sock])
