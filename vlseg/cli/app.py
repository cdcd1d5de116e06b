"""Which verb, and what its end means: 0 done, 1 failed for some items, 2 a wrong call or input, 130 interrupted."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from vlseg.cli.parsing import nearest
from vlseg.types import VLSegError
from vlseg.version import __version__

VERBS = {
    "segment": "masks for words: vlseg segment IMAGE QUERY [QUERY ...]",
    "train": "train a model: vlseg train CONFIG [a.b=c ...]",
    "eval": "score a model or predictions on a data set: vlseg eval --model M --data D --out DIR",
    "data": "render, look into, check and convert data: vlseg data render | info | check | convert",
    "label": "pseudo-labels, ignore maps, what to annotate next: vlseg label IMAGES --queries FILE --out DIR",
    "export": "Results for other tools, models for other runtimes: vlseg export KIND SOURCE --out DIR",
    "serve": "answer over HTTP: vlseg serve [--port N] [--model M ...]",
    "demo": "a page in the browser: vlseg demo [--port N] [--model M ...]",
    "info": "versions, devices, and with `info models` the models",
}
SIGINT_CODE, SIGPIPE_CODE = 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line on `argv` (default: that of the process) and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        return _run(arguments)
    except VLSegError as error:
        if debug:
            traceback.print_exc()
        return _fail(2, " ".join(str(error).splitlines()))
    except KeyboardInterrupt as stop:
        return _fail(SIGINT_CODE, str(stop) or "interrupted")
    except BrokenPipeError:
        # The reader of stdout has gone (`| head`); the flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SIGPIPE_CODE
    except SystemExit as end:  # argparse, after --help
        return end.code if isinstance(end.code, int) else 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        reason = " ".join(str(error).split())
        return _fail(1, f"unexpected {type(error).__name__}: {reason} (a bug? --debug shows where)")


def overview() -> str:
    """What `vlseg --help` prints."""
    verbs = "\n".join(f"  {verb:<9} {what}" for verb, what in VERBS.items())
    return (
        f"vlseg {__version__}: words in, masks out.\n\nusage: vlseg VERB ...\n\n{verbs}\n\n"
        "`vlseg VERB --help` tells the rest; `vlseg --version` the version.\n"
        "Exit codes: 0 done, 1 failed for some items, 2 a wrong call or input."
    )


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    verb = arguments[0]
    if verb in ("--version", "-V"):
        print(f"vlseg {__version__}")
        return 0
    if verb not in VERBS:
        kind = "option" if verb.startswith("-") else "verb"
        hint = nearest(verb, list(VERBS)) or f"; there are {', '.join(VERBS)}"
        raise VLSegError(f"no {kind} {verb!r}{hint}")
    code: int = import_module(f"vlseg.cli.{verb}").run(arguments[1:])
    sys.stdout.flush()
    return code


def _fail(code: int, message: str) -> int:
    print(message if message.startswith("vlseg") else f"vlseg: {message}", file=sys.stderr)
    return code
