"""A command whose reader goes away, as behind `| head`, ends without a word, and Ctrl-C without a traceback."""

import os
import sys
from collections.abc import Callable


def quietly(command: Callable[[], int]) -> int:
    """Run a command.   -> its exit status; 141, what a shell gives for a broken pipe, where nobody reads any more; 130 after
    Ctrl-C before the command had begun"""
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
    except KeyboardInterrupt:
        print("sparc-ref: stopped before anything had begun", file=sys.stderr)
        return 130
