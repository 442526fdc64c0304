"""A command whose reader goes away, as behind `| head`, ends without a word."""

import os
import sys
from collections.abc import Callable


def quietly(command: Callable[[], int]) -> int:
    """Run a command.   -> its exit status; 141, what a shell gives for a broken pipe, where nobody reads any more"""
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)            # the interpreter flushes once more when it ends
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        return 141
