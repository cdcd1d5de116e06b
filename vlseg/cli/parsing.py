"""argparse with our manners: a wrong call is a VLSegError of one line that names the nearest option.

argparse rather than typer: `vlseg --help` takes 0.03 s instead of 0.2 s, and options may stand anywhere.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from vlseg.types import VLSegError


class Parser(argparse.ArgumentParser):
    """A parser of one verb. Options may stand before, between and behind the words."""

    def __init__(self, verb: str, description: str, epilog: str | None = None):
        super().__init__(
            f"vlseg {verb}",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        """Raises VLSegError."""
        raise VLSegError(f"{self.prog}: {' '.join(message.split())}; see `{self.prog} --help`")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments. Raises VLSegError for a wrong call, SystemExit(0) after --help."""
        known = [option for action in self._actions for option in action.option_strings]
        end = list(argv).index("--") if "--" in argv else len(argv)
        for word in argv[:end]:
            option = word.split("=", 1)[0]
            if option.startswith("--") and option not in known:
                self.error(f"no option {option}{nearest(option, known)}")
            if re.fullmatch(r"-[^\W\d_]\S*", word) and option not in known:
                self.error(f"no option {word}; if these are words, write -- before them")
        # parse_intermixed_args loses the "--"; a mark that no argument can hold makes plain words of what follows it.
        marked = [*argv[:end], *("\0" + word for word in argv[end + 1 :])]
        args = self.parse_intermixed_args(marked)
        for name, value in vars(args).items():
            if isinstance(value, str):
                setattr(args, name, value.removeprefix("\0"))
            elif isinstance(value, list):
                setattr(args, name, [word.removeprefix("\0") for word in value])
        return args


def nearest(word: str, known: Sequence[str]) -> str:
    """ "; did you mean X?", or nothing where no known word is near."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def convert(function: Callable[[str], Any], value: str | None) -> Any:
    """An option's value through a function that raises VLSegError itself; None stays None."""
    return None if value is None else function(value)


def probability(option: str) -> Callable[[str], float]:
    """A converter of numbers in 0..1; raises VLSegError in the name of the option."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError as error:
            raise VLSegError(f"{option} {text}: not a number") from error
        if not 0 <= value <= 1:
            raise VLSegError(f"{option} {text}: must lie in 0..1")
        return value

    return read


def whole_number(option: str, least: int) -> Callable[[str], int]:
    """A converter of integers >= least; raises VLSegError in the name of the option."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError as error:
            raise VLSegError(f"{option} {text}: not a whole number") from error
        if value < least:
            raise VLSegError(f"{option} {text}: must be at least {least}")
        return value

    return read
