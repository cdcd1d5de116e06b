"""The command line. `main` is the console entry; each verb is a file of its own and is imported when it is called."""

from vlseg.cli.app import main

__all__ = ["main"]
