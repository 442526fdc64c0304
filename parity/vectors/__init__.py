"""The reference vectors: what goes in, what comes out, how far an answer may be off.  Frozen; parity/README.md is the format.

    cases = vectors.load(level="losses")
    for case in cases.values():
        got = {"out.loss": ..., "grad.v": ...}            # yours, computed from case.tensors["in.v"], ...
        wrong = [d for d in vectors.compare(case, got, "float32") if not d.ok]

Needs NumPy and jsonschema.  `python -m parity vectors` regenerates them and compares.
"""

from parity.vectors.read import FOLDER, MANIFEST, Case, Difference, compare, load, passes, read_manifest, zero_padding

__all__ = ["FOLDER", "MANIFEST", "Case", "Difference", "compare", "load", "passes", "read_manifest", "zero_padding"]
