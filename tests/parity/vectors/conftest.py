import json
import shutil

import pytest
from tampering import KEPT

from parity import vectors


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A sound folder of four cases."""
    folder = tmp_path_factory.mktemp("small")
    manifest = json.loads((vectors.FOLDER / vectors.MANIFEST).read_text())
    manifest["cases"] = [entry for entry in manifest["cases"] if entry["id"] in KEPT]
    for entry in manifest["cases"]:
        shutil.copy(vectors.FOLDER / entry["file"], folder)
    (folder / vectors.MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def folder(small, tmp_path):
    return shutil.copytree(small, tmp_path / "v1")
