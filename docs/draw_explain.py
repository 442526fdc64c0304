"""README's picture of what each word looks at, and where words miss, from a demo's models:

    make demo
    python docs/draw_explain.py [RUN [OUT]]     runs/demo, docs/images/explain.png

The picture shown is the first test picture with three regions or more, whatever it shows.
"""

import sys
from pathlib import Path

import numpy as np

from sparc_ref.commands.report import first_to_show, runs_in
from sparc_ref.evaluate.grouping import patch_cover
from sparc_ref.run.examples import explain_examples
from sparc_ref.run.rundir import load_run, sources_of
from sparc_ref.run.sources import open_source
from sparc_ref.show.maps import compare
from sparc_ref.show.plots import png

PICTURES = 300                                            # that misses are counted in


def opened(run):
    """{name: (params, config, data set, tokenizer)} of a demo's runs, or of any run on scenes."""
    models = {}
    for name, folder in runs_in(run).items():
        params, config, tokenizer, found = load_run(folder)
        spec = next(iter(sources_of(found)["measured"].values()))
        models[name] = params, config, open_source(spec, config.image_size, split="test"), tokenizer
    return models


def draw(run: Path) -> bytes:
    """The PNG of these runs side by side."""
    seen = {name: explain_examples(*model, first_to_show(model[2])[:1])[0] for name, model in opened(run).items()}
    return png(compare(seen))


def misses(params, config, dataset, tokenizer, pictures=PICTURES) -> dict[str, float]:
    """Of the words of mosaics: how many there are; the top patches on another region, on one of the same colour; the share of
    patches that the threshold removes; the weight inside, where another region has the word's colour and where none has."""
    words, inside, removed = [], {True: [], False: []}, []
    for e in explain_examples(params, config, dataset, tokenizer, range(min(pictures, len(dataset)))):
        cover = patch_cover(e.masks, e.grid)                      # (R,P)
        colour = {r: e.words[l].partition("-")[0] for l, r in enumerate(e.objects.tolist())}
        for weight, r in zip(e.weights, e.objects.tolist()):
            hit = int(np.argmax(cover[:, np.argmax(weight)]))
            words.append((hit != r, hit != r and colour[hit] == colour[r]))
            inside[sum(c == colour[r] for c in colour.values()) > 1].append(weight @ cover[r])
            removed.append(np.mean(weight == 0))
    missed, same = np.sum(words, axis=0)
    return {"words": len(words), "missed": int(missed), "same colour": int(same), "removed": float(np.mean(removed)),
            "inside, colour shared": float(np.mean(inside[True])), "inside, colour alone": float(np.mean(inside[False]))}


def main():
    images = Path(__file__).parent / "images"
    run, out, *_ = map(Path, [*sys.argv[1:], *["runs/demo", images / "explain.png"][len(sys.argv) - 1:]])
    out.write_bytes(draw(run))
    print(f"{out}: the first test picture with three regions or more, of {run}")
    for name, model in opened(run).items():
        if model[2].describe()["kind"] == "mosaics":
            print(f"{name}, first {PICTURES} test pictures: {({key: round(x, 3) for key, x in misses(*model).items()})}")


if __name__ == "__main__":
    main()
