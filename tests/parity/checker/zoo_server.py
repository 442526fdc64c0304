"""Checks many files from one process that stays clean: each check is a fork of it, so torch is imported once.

A line on standard input is a file; a line on standard output is its report as JSON, or {"error": why there is none}.  With JAX
in a process its forks cannot compute, which is why the tests' own process will not do.
"""

import json
import subprocess
import sys
import traceback
from pathlib import Path


class Server:
    """with Server() as ask: ask(path) -> the report as its to_dict() has it.  Raises RuntimeError for what the check raised."""

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self.ask

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(60)

    def ask(self, path):
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        reply = json.loads(self.process.stdout.readline() or '{"error": "the server is gone"}')
        if reply.keys() == {"error"}:
            raise RuntimeError(reply["error"])
        return reply


def serve():
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[3])]
    import torch
    import zoo_cases

    import parity

    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        try:
            reply = parity.check(zoo_cases.target_of(Path(line.strip()))).to_dict()
        except Exception:
            reply = {"error": traceback.format_exc()}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    serve()
