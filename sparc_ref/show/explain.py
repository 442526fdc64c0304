"""What a trained model sees in a picture, word by word: a figure and a table."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sparc_ref.run.examples import Explained


def explain(
    checkpoint: str | os.PathLike, image: str | os.PathLike, caption: str, out: str | os.PathLike = "explain.png",
    say: Callable[[str], Any] = print,
) -> "Explained":
    """Draw the region that each word of a caption finds in a picture, its similarities and its weights.

    checkpoint  a checkpoint or run directory; image  any picture file, squeezed to the model's square; out  the PNG to write
    Returns examples.Explained. Raises ValueError (CheckpointError among them) with what is wrong.
    """
    from sparc_ref.data import load_image
    from sparc_ref.run.examples import explain_caption
    from sparc_ref.run.files import write_whole
    from sparc_ref.run.rundir import load_run, objective_of
    from sparc_ref.show.maps import compare
    from sparc_ref.show.plots import png

    out = Path(out)
    if not out.parent.is_dir():
        raise ValueError(f"out: expected a file in an existing folder, got {out}")
    params, config, tokenizer, found = load_run(checkpoint)
    pixels = load_image(image, config.image_size)
    if unknown := unknown_words(tokenizer, caption):
        say(f"warning: the tokenizer does not know {', '.join(unknown)}: the model never saw them in training")
    encoding = tokenizer.encode(caption, config.max_tokens)
    if encoding.dropped:
        say(f"warning: the caption is longer than {config.max_tokens} tokens: the last {encoding.dropped} are cut")
    objective = objective_of(found.record["config"], found.path)
    seen = explain_caption(params, config, tokenizer, pixels, caption, objective)
    say(f"{found.path}, {config.image_size} x {config.image_size} pixels, {seen.grid[0]} x {seen.grid[1]} patches")
    say(table(seen))
    if text := meaning(params, config, tokenizer, found):
        say(text)
    figure = compare({"": seen}, ("similarity", "weights"), title=caption)
    write_whole(out, png(figure))
    say(f"figure: {out}")
    return seen


def meaning(params, config, tokenizer, found, examples=64) -> str:
    """What the model's grounding gap says of its maps: from the run's metrics; without them measured here, on its own data."""
    from sparc_ref.run.measure import evaluate
    from sparc_ref.run.rundir import last_evaluation, objective_of, sources_of
    from sparc_ref.run.sources import open_source
    from sparc_ref.show.results import grounding

    try:
        row = last_evaluation(found)
        if text := grounding(row):
            return f"{text} (Measured at update {row['step']}, on {row.get('split', 'its validation data')}.)"
        spec = next(iter(sources_of(found)["measured"].values()))
        dataset = open_source(spec, config.image_size, split="test")
        objective = objective_of(found.record["config"], found.path)
        text = grounding(evaluate(params, config, dataset, tokenizer, examples, objective=objective))
        return f"{text} (Measured now, on {min(examples, len(dataset))} examples of {dataset.name}.)" if text else ""
    except (ValueError, OSError) as error:
        return f"The grounding gap of this model is not known: {error}"


def unknown_words(tokenizer, caption):
    """The parts of a caption that become <unk>, as they stand in it."""
    encoding = tokenizer.encode(caption)
    return [repr(caption[a:b]) for i, (a, b) in zip(encoding.ids, encoding.offsets) if i == tokenizer.unk_id]


def table(seen, tenth=0.1):
    """Per word: its top patch (row, column from the top left, from 1), the weight there and in the top tenth of the patches.

    A word of several pieces is their mean, and says how many they are.
    """
    P = seen.weights.shape[1]
    most = max(1, round(P * tenth))
    lines = [f"{'word':18} {'top patch':>12} {'its weight':>11} {f'top {most} of {P}':>13}",
             f"{'(evenly spread)':18} {'':12} {1 / P:11.3f} {most / P:13.3f}"]
    for word, w, pieces in zip(seen.words, seen.weights, seen.pieces):
        row, column = divmod(int(np.argmax(w)), seen.grid[1])
        joined = f"   mean of {pieces} pieces" if pieces > 1 else ""
        lines.append(f"{word[:18]:18} {f'({row + 1}, {column + 1})':>12} {w.max():11.3f} {np.sort(w)[-most:].sum():13.3f}"
                     + joined)
    lines.append(f"top patch: row and column, from the top left; its weight, that of the top {most} of {P} patches: shares of "
                 "the word's weights (eq. 4)")
    return "\n".join(lines)
