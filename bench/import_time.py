"""How long `import sparc_ref` takes in a fresh process, beside NumPy alone; the median of ten each, interleaved."""

import statistics
import subprocess
import sys
import time


def seconds(code):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


times = {code: [] for code in ("pass", "import numpy", "import sparc_ref")}
for _ in range(10):
    for code in times:
        times[code].append(seconds(code))
python, numpy, ours = (statistics.median(t) for t in times.values())
print(f"import sparc_ref: {ours - python:.3f} s beyond starting Python; NumPy alone {numpy - python:.3f} s")
