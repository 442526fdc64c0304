"""Run the checker on a folder of losses whose truth is known, and grade what it said.

    python bench/zoo.py tests/parity/checker/fresh/* [--out runs/zoo] [--only NAME...] [--seconds N]

A folder holds `*.py`, one loss each, and labels.toml, one table a file:

    group    "sound" | "faulty" | "unlisted" | "gradient" | "size"
    target   what it is meant to be: "fine" | "global" | "total" | "listing1"
    verdict  "equals" | "differs" | "conditional": right except where `edge` says, or up to a size
    truth    what it computes, in words; stage: the first that departs, or "none"; grads: whose gradients are off
    also     other stages that the same change may as well be said to begin at, where the code skips some
    small    true: it shows with numbers alone that ordinary embeddings never reach; that they were measured is right
    args     {keyword = value}: what is answered where the checker asks; name: which function, where it asks for one

OUT/results.jsonl holds a line for every loss, written as soon as it is known: a run that was stopped goes on where it was.
OUT/sentences.txt holds every sentence that was printed, under the truth, for a person to read.  A table says, for each group

    right          the verdict is the label's, and the first stage, or the gradients, that it names
    placed         called unexplained, at the right stage, or by the right gradient
    stage          the verdict is right, the stage or the gradient is another
    wrong          another verdict; a sound loss that is called different, or right under conditions that it does not need, is a
                   false alarm.  Flat rows, empty captions and zeros at padding are no ordinary input: they count for neither
    asked          it wanted a keyword, or the name of a function; what came after the answer is counted as the rest is

and how many sentences left by the door (parity/checker/diagnosis/clauses.py): said, weakened, withheld.
"""

import argparse
import json
import re
import time
import tomllib
import traceback
from collections import Counter
from pathlib import Path

GROUPS = ("sound", "faulty", "unlisted", "gradient", "size")
STAGES = {"minmax": "stretched", "threshold": "sparse", "grouping": "grouped", "norm": "logits", "reduction": "loss",
          "global": "loss", "edge": "none"}              # the checker's names -> the labels'
ORDER = ("similarity", "minmax", "threshold", "weights", "grouping", "norm", "logits", "loss", "reduction", "global", "edge",
         "gradient")
EDGES = {"no flat rows", "no caption of padding alone", "no zero embeddings at padding"}
WHOLE = ("similarity.detached", "weights.detached", "minmax.detached")
INPUTS = {"v": "patches", "t": "tokens", "theta": "theta", "scale": "theta", "v_bar": "image", "t_bar": "text"}


def labels(folder: Path) -> dict[str, dict]:
    """The table of a folder.  Raises ValueError for a loss without label, or a label without loss."""
    table = tomllib.loads((folder / "labels.toml").read_text())
    files = {path.stem for path in folder.glob("*.py")} - {"verify"}
    if odd := files ^ table.keys():
        raise ValueError(f"{folder}: expected a label for every loss, and a loss for every label: {', '.join(sorted(odd))}")
    return table


def run(path: Path, label: dict) -> dict:
    """One check, and again with the answers of the label where it asks.  Time is no part of a grade."""
    from parity.checker.calling.trial import Unclear
    from parity.checker.verdict import check

    start, asked = time.monotonic(), []
    target, args = str(path), {}
    for _ in range(3):
        try:
            report = check(target, **({"budget": 3600.0, "time_limit": 300.0} | args))
            break
        except Unclear as question:
            asked.append(str(question))
            if "name one of" in str(question) and "name" in label:
                target = f"{path}:{label['name']}"
            elif label.get("args") and not args:
                args = dict(label["args"])
            else:
                return {"asked": asked, "verdict": "asks"}
        except (ValueError, AssertionError) as error:  # a fault of the checker itself, or of the label's args
            return {"asked": asked, "verdict": "failed", "failed": traceback.format_exc(), "error": str(error)}
    else:
        return {"asked": asked, "verdict": "asks"}
    made = report.to_dict()
    return {
        "asked": asked, "verdict": report.verdict, "printed": str(report), "seconds": round(time.monotonic() - start, 1),
        "json": {k: x for k, x in made.items() if k not in ("stages", "off")}, "sentences": made.get("sentences"),
    }


def wanted(label: dict) -> set[str]:
    """The verdicts that are right.  "conditional" is graded by its conditions."""
    if label["verdict"] == "differs":
        return {"explained", "unexplained", "conditional"}
    equal = "listing1" if label["target"] == "listing1" else "eq6"
    return {"conditional"} if label["group"] == "size" else {"conditional", equal}


def grade(label: dict, found: dict) -> str:
    """ "right" | "placed" | "stage" | "wrong" | "alarm" | "asks" | "failed" """
    verdict, group = found["verdict"], label["group"]
    if verdict in ("asks", "failed"):
        return verdict
    small = bool(label.get("small")) and measured(found.get("json", {}))
    if verdict not in wanted(label) and not (small and verdict == "eq6"):
        return "alarm" if group == "sound" and verdict not in ("eq6", "listing1", "cannot_run") else "wrong"
    report = found["json"]
    beyond = set(report["conditions"]) - EDGES
    if group == "sound":
        return "alarm" if beyond else "right"
    if small:
        return "alarm" if beyond else "right"
    if verdict == "conditional" and not beyond:           # right on all ordinary batches, it says
        return "wrong"
    if group == "size":
        return "right" if report["limits"] else "wrong"
    if group == "gradient":
        pooled = {"global": ("_bar",), "total": ("", "_bar")}.get(label["target"], ("",))  # of a total either may be meant
        named = gradients_named(report)
        right = any(named == {INPUTS[x + end * (x in "vt")] for x in label["grads"]} for end in pooled)
    else:
        shown = [x["stage"] for x in report["deviations"] if not set(x["hidden_by"]) & EDGES]
        first = min(shown, key=ORDER.index, default=report["stage"])
        stage = (report["stage"] if verdict == "unexplained" else first) or "none"
        right = STAGES.get(stage, stage) in (label["stage"], *label.get("also", ()))
    return ("placed" if verdict == "unexplained" else "right") if right else "stage"


def measured(report: dict) -> bool:
    """Whether the small number is there: a floor, or an epsilon."""
    named = [*report.get("deviations", []), *report.get("harmless", [])]
    return bool(report.get("floors")) or any(x["id"].endswith(".epsilon") and x["value"] for x in named)


def gradients_named(report: dict) -> set[str]:
    """Whose gradients a report calls wrong."""
    named = set()
    for x in report["deviations"]:
        parts = x["id"].split(".")
        leaf = parts[1] if parts[0] == "gradient" and len(parts) > 2 else x["value"] if parts[-1] == "no_gradient" else ""
        if x["id"] in WHOLE and not x["way"]:
            named |= {"patches", "tokens"}                # a path that both inputs take
        if leaf in INPUTS:
            named.add(INPUTS[leaf])
        if x["id"] == "gradient.padding_not_zero":
            named.add("tokens")
        if parts[-1] == "detached":                       # which inputs lack it is said in the sentence
            named |= {word for word in ("patches", "tokens") if f"gradient for {word} lacks" in report["headline"]}
    said = re.findall(r"The gradient for (?:the )?(\w+) is (?!right)", report["headline"])
    return named | set(said)


def results(out: Path) -> dict[str, dict]:
    path = out / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {x["key"]: x for x in map(json.loads, lines)}


def table(rows: list[dict]) -> str:
    """Markdown: a line for each group."""
    names = ("right", "placed", "stage", "wrong", "alarm", "asks", "failed")
    out = ["| group | losses | " + " | ".join(names) + " | asked | said | weakened | withheld |",
           "| --- |" + " ---: |" * (len(names) + 5)]
    for group in (*GROUPS, ""):
        mine = [x for x in rows if group in ("", x["label"]["group"])]
        if not mine:
            continue
        marks = Counter(x["grade"] for x in mine)
        doors = [x["sentences"] or {} for x in mine if "sentences" in x]
        counts = [sum(d.get(kind, 0) for d in doors) for kind in ("said", "weaker", "withheld")]
        cells = [group or "all", len(mine), *(marks[n] for n in names), sum(bool(x["asked"]) for x in mine), *counts]
        out.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(out)


def sentences(rows: list[dict]) -> str:
    """Truth and what was printed, loss by loss."""
    out = []
    for x in rows:
        label = x["label"]
        out += [f"=== {x['key']}   {label['group']}, {label['target']}, {label['verdict']}, {label['stage']}: {x['grade']}",
                f"TRUTH {label['truth']}", f"CALL  {label['call']}", *(f"ASKED {text}" for text in x["asked"]),
                x.get("printed") or x.get("failed", ""), ""]
    return "\n".join(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--only", nargs="*", default=[], help="names of losses, checked again")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no further loss after so many")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    start, known = time.monotonic(), results(options.out)
    every = {f"{folder.name}/{name}": (folder / f"{name}.py", label)
             for folder in options.folders for name, label in labels(folder).items()}
    with (options.out / "results.jsonl").open("a") as file:
        for key, (path, label) in every.items():
            again = path.stem in options.only
            if time.monotonic() - start > options.seconds or (options.only and not again) or (key in known and not again):
                continue
            known[key] = {"key": key, **run(path, label)}
            file.write(json.dumps(known[key]) + "\n")
            file.flush()
            print(f"{key}: {grade(label, known[key])} ({known[key]['verdict']})", flush=True)
    rows = [known[key] | {"label": label, "grade": grade(label, known[key])}
            for key, (_, label) in every.items() if key in known]
    (options.out / "sentences.txt").write_text(sentences(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
