"""A folder of vectors changed by hand: as damage does it, and as a forger would."""

import json

import pytest

from parity import vectors
from parity.vectors import safe_read

KEPT = ("global_default", "global_one_sample", "fine_ties_minimum_first", "fine_ties_minimum")


def edit(folder, change):
    """Rewrite the manifest."""
    path = folder / vectors.MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def entry(manifest, name="global_default"):
    return next(e for e in manifest["cases"] if e["id"] == name)


def replace(folder, content, name="global_default"):
    """Put other bytes in a file and let the manifest agree with them: what a forger would do."""
    (folder / f"{name}.safetensors").write_bytes(content)
    edit(folder, lambda m: entry(m, name).update(bytes=len(content), sha256=safe_read.digest(content)))


def header(content):
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def build(head, body):
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + body


def refused(folder, match):
    with pytest.raises(ValueError, match=match) as caught:
        vectors.load(folder)
    assert "Traceback" not in str(caught.value)
