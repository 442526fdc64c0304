"""README's picture of what each word looks at, drawn from a demo's models:  make demo; python docs/draw_explain.py

    python docs/draw_explain.py [RUN [OUT]]     runs/demo, docs/images/explain.png

The picture shown is the first test picture with three regions or more, whatever it shows.
"""

import sys
from pathlib import Path

from sparc_ref.commands.report import first_to_show, runs_in
from sparc_ref.run.examples import explain_examples
from sparc_ref.run.rundir import load_run, sources_of
from sparc_ref.run.sources import open_source
from sparc_ref.show.maps import compare
from sparc_ref.show.plots import png


def draw(run: Path) -> bytes:
    """The PNG of a demo's runs, or of any run on scenes, side by side."""
    seen = {}
    for name, folder in runs_in(run).items():
        params, config, tokenizer, found = load_run(folder)
        dataset = open_source(next(iter(sources_of(found)["measured"].values())), config.image_size, split="test")
        (seen[name],) = explain_examples(params, config, dataset, tokenizer, first_to_show(dataset)[:1])
    return png(compare(seen))


if __name__ == "__main__":
    images = Path(__file__).parent / "images"
    run, out, *_ = map(Path, [*sys.argv[1:], *["runs/demo", images / "explain.png"][len(sys.argv) - 1:]])
    out.write_bytes(draw(run))
    print(f"{out}: the first test picture with three regions or more, of {run}")
