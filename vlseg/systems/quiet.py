"""Keep the chatter of libraries off the terminal while a model is loaded; errors still come through as exceptions."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Within the block: no progress bars and no log lines below ERROR from the libraries that load models.

    Everything is as before afterwards. Imports made for the first time belong inside the block: torchao, pulled in by
    transformers, logs its warnings on import; DeepSpeed prints them to stdout, where a caller may expect JSON alone.
    """
    names = ("torch.utils._pytree", "torchao", "bitsandbytes", "transformers", "timm", "open_clip", "huggingface_hub")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    import torch  # noqa: F401  (sets up its loggers on import, undoing the level of its own)

    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    from transformers.utils import logging as hf_logging

    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    if bars:
        hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        if bars:
            hf_logging.enable_progress_bar()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        hf_logging.set_verbosity(verbosity)
