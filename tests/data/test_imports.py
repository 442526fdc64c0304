"""What data costs to import."""

import subprocess
import sys


def test_data_imports_numpy_alone_until_more_is_needed():
    code = ("import sys, sparc_ref.data as d; d.DrawnScenes()[0]; d.WordTokenizer(['a']).encode('a')\n"
            "heavy = {'PIL', 'tqdm', 'sentencepiece', 'matplotlib', 'torch', 'tyro'}\n"
            "print(*sorted(heavy & {m.split('.')[0] for m in sys.modules}))")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""
