"""From a name to a verdict: exit codes, JSON, what cannot run, what must be asked, and the path of a new user."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

import parity
from parity.checker.calling.trial import Unclear
from sparc_ref.commands import cli

EXAMPLES = Path(parity.__path__[0]) / "examples"
SCHEMA = json.loads((Path(parity.__path__[0]) / "checker" / "check.schema.json").read_text())

LOSSES = '''
import numpy as np
from sparc_ref import fine_grained_loss, global_loss

def closure(v, t, mask, theta, **options):
    return fine_grained_loss(v, t, mask, theta, **options)

def sound(patches, tokens, mask, theta):
    return closure(patches, tokens, mask, theta)

def listing(patches, tokens, mask, theta):
    return closure(patches, tokens, mask, theta, reduction="token")

def threshold(patches, tokens, mask, theta, sigma=0.3):
    return closure(patches, tokens, mask, theta, sigma=sigma)

def no_padding(patches, tokens, mask, theta):
    return closure(patches, tokens, np.ones_like(mask), theta)

def neither(a, b, scale):
    return closure(a, b, np.ones(b.shape[:2], bool), np.log(scale))[0]

def pooled(image_embeds, text_embeds, theta):
    return global_loss(image_embeds, text_embeds, theta)

def in_float32(patches, tokens, mask, theta):
    if patches.dtype != np.float32:
        raise TypeError(f"expected dtype float32, got {patches.dtype}")
    return closure(patches, tokens, mask, theta)

def breaks(patches, tokens, mask, theta):
    return (patches @ tokens).sum()

def hangs(patches, tokens, mask, theta):
    while True:
        pass

def crashes(patches, tokens, mask, theta):
    import ctypes
    ctypes.string_at(0)

def alone_only(patches, tokens, mask, theta):
    if len(patches) > 3:
        raise RuntimeError("at most three")
    return closure(patches, tokens, mask, theta)
'''


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    path = tmp_path_factory.mktemp("losses") / "my_losses.py"
    path.write_text(LOSSES)
    return path


@pytest.fixture(scope="module")
def report(losses):
    known = {}

    def of(name):
        if name not in known:
            known[name] = parity.check(f"{losses}:{name}")
            jsonschema.validate(json.loads(known[name].to_json()), SCHEMA)
        return known[name]

    return of


def run(argv, capsys):
    """-> exit status, stdout, stderr of the command."""
    try:
        status = cli.run(["check", *map(str, argv)])
    except SystemExit as stop:
        status = stop.code
    out = capsys.readouterr()
    return status, out.out, out.err


@pytest.mark.parametrize("name, verdict, code, summary", [
    ("sound", "eq6", 0, "SPARC: equals eq. 6"), ("listing", "listing1", 1, "SPARC: equals Listing 1"),
    ("threshold", "explained", 1, "SPARC: differs, explained: threshold.constant(0.3)"),
    ("no_padding", "conditional", 1, "SPARC: equals eq. 6 only under conditions: no padding"),
    ("neither", "conditional", 1, "SPARC: equals eq. 6 only under conditions: no padding"),
    ("pooled", "eq6", 0, "SPARC: equals eq. 1"), ("in_float32", "eq6", 0, "SPARC: equals eq. 6"),
])
def test_verdicts(report, name, verdict, code, summary):
    found = report(name)
    assert (found.verdict, found.exit_code, found.summary) == (verdict, code, summary)
    assert str(found).splitlines()[0] == "" and found.headline.split(".")[0] in " ".join(str(found).split())


def test_what_the_report_holds(report):
    found = report("threshold")
    assert found.deviations == ("threshold.constant",) and found.harmless == () and found.conditions == ()
    assert found.convention.written == "v,t,mask,theta" and found.seconds > 0 and found.calls > 50
    text = str(found)
    for words in ("patches=patches (B,P,D)", "certain", "eq. 3", "sigma = 1 / v.shape[1]", "In training", "pass 1/P"):
        assert words in text, words
    stages = {s["name"]: s for s in found.to_dict()["stages"]}
    assert stages["similarity"]["ours"] and stages["similarity"]["probe"] == "padded"
    assert report("in_float32").convention.dtype == "float32"


def test_an_argument_can_be_checked_with_another_value(losses):
    assert parity.check(f"{losses}:threshold", sigma="1/P").verdict == "eq6"


def test_two_orders_that_both_run_are_decided_by_what_explains_better(report):
    assert report("neither").convention.written == "v,t,scale"


@pytest.mark.parametrize("target, error, call, words", [
    ("{file}:breaks", "RuntimeError", "breaks(", "in breaks:  return (patches @ tokens).sum()"),
    ("{file}:hangs", "time", "hangs(", "longer than 1 s"), ("{file}:crashes", "crash", "crashes(", "SIGSEGV"),
    ("{file}:sounds", "NotFound", "import", "did you mean sound"), ("{file}:sound.x", "NotFound", "import", "has no 'sound.x'"),
    ("/nowhere/at_all.py", "NotFound", "import", "no such file"),
    ("{folder}/broken.py", "SyntaxError", "import", "broken.py:1"),
    ("{folder}/needs.py", "ModuleNotFoundError", "import", "needs.py:1"),
    ("no_such_module:f", "NotFound", "import", "no module 'no_such_module'"),
])
def test_what_cannot_run_is_told_with_their_line(losses, target, error, call, words):
    (losses.parent / "broken.py").write_text("def loss(v, t:\n")
    (losses.parent / "needs.py").write_text("import a_package_that_is_not_there\ndef loss(v, t): pass\n")
    found = parity.check(target.format(file=losses, folder=losses.parent), time_limit=1.0 if "hangs" in target else 20.0)
    assert (found.verdict, found.exit_code, found.error["type"]) == ("cannot_run", 3, error)
    assert found.error["call"].startswith(call)
    assert words in " ".join([found.error["message"], *found.error["lines"]])
    jsonschema.validate(json.loads(found.to_json()), SCHEMA)
    assert "CANNOT RUN" in str(found)


def test_batches_that_it_refuses_are_noted(losses):
    found = parity.check(f"{losses}:alone_only")
    assert found.verdict != "eq6" and "at most three" in str(found)


def test_several_candidates_are_listed_and_one_is_taken(losses, capsys):
    with pytest.raises(Unclear, match=r"my_losses.py:sound\n"):
        parity.check(losses)
    status, _, err = run([losses], capsys)
    assert status == 2 and "name one of" in err
    assert parity.check(EXAMPLES / "numpy_loss.py").convention.name == "sparc_loss"


@pytest.mark.parametrize("given, words", [
    ({"masks": "padding"}, "no option masks; there are call, patches"), ({"accept": "listing2"}, "expected listing1"),
    ({"device": "tpu"}, 'expected "cpu" or "cuda"'), ({"framework": "cupy"}, "not installed"),
    ({"call": "v,t,maks"}, "'maks': expected one of these words; did you mean 'mask'"),
    ({"call": "help"}, r"(?s)tokens\n.*t_list +a list of captions"), ({"tokens": "t_lst"}, "tokens: .* Did you mean t_list?"),
    ({"patches": "t"}, "patches: expected one of v,"), ({"mask": "v"}, "mask: expected"),
    ({"scale": "mask"}, "scale: expected"),
])
def test_wrong_options(losses, given, words):
    with pytest.raises(ValueError, match=words):
        parity.check(f"{losses}:sound", **given)


def test_what_is_no_implementation():
    with pytest.raises(ValueError, match="expected something to call"):
        parity.check(3)


@pytest.mark.slow
def test_a_file_that_checks_itself_does_not_do_so_inside_a_check(tmp_path):
    path = tmp_path / "itself.py"
    said = tmp_path / "said"
    check_itself = f"\nimport parity\nopen({str(said)!r}, 'a').write(parity.check(sound).verdict + ' ')\n"
    path.write_text(LOSSES.split("def listing")[0] + check_itself)
    assert parity.check(f"{path}:sound").verdict == "eq6"
    assert said.read_text() == "cannot_run "
    done = subprocess.run([sys.executable, "-W", "ignore", str(path)], capture_output=True, text=True, timeout=100,
                          env={"PYTHONPATH": str(EXAMPLES.parents[1]), "PATH": ""})
    assert done.returncode == 0 and said.read_text() == "cannot_run eq6 ", done.stderr


def test_the_command_writes_page_and_json(losses, tmp_path, capsys):
    page, data = tmp_path / "page.html", tmp_path / "deep" / "report.json"
    status, out, err = run([f"{losses}:threshold", "--html", page, "--json", data], capsys)
    assert status == 1 and err == ""
    assert out.splitlines()[-1] == "  SPARC: differs, explained: threshold.constant(0.3)" and str(page) in out
    jsonschema.validate(json.loads(data.read_text()), SCHEMA)
    assert page.read_text().startswith("<!doctype html>") and "threshold.constant" in page.read_text()


@pytest.mark.parametrize("argv, words", [
    (("--tokens", "t_list"), "a list of captions"), (("--tokens", "t_cls"), "[CLS] and tokens"),
    (("--patches", "v_flat", "--tokens", "t_flat", "--mask", "mask_flat"), "patches (B P,D)"),
])
def test_the_command_takes_every_word_that_a_question_names(losses, argv, words, capsys):
    out = "".join(run([f"{losses}:breaks", *argv, "--html", "none"], capsys)[1:])
    assert words in " ".join(out.split()) and "invalid choice" not in out


def test_exit_codes_of_the_command(losses, capsys):
    for argv, wanted in (
        ([f"{losses}:listing", "--accept", "listing1"], 0), ([], 2),
        ([f"{losses}:sound", "--init", "dim"], 2),
        ([f"{losses}:sound", "--call", "v,t"], 2), (["a b"], 2),
        ([f"{losses}:breaks", "--call", "v,t,mask,theta"], 3),
    ):
        assert run([*argv, "--html", "none"], capsys)[0] == wanted, argv


def test_torch_is_not_imported_for_the_command_line():
    code = (
        "import sys, sparc_ref; assert 'torch' not in sys.modules\n"
        "from sparc_ref.commands import cli\n"
        "try: cli.run(['check', '--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "print(sorted({'torch', 'jax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=EXAMPLES.parents[1], timeout=60)
    assert done.stdout.endswith("[]\n"), done.stderr
    assert "--time-limit" in done.stdout


@pytest.mark.parametrize("name", ["numpy", "torch", pytest.param("jax", marks=pytest.mark.slow)])
def test_the_examples_equal_eq_6(name):
    report = parity.check(EXAMPLES / f"{name}_loss.py")
    assert report.verdict == "eq6" and report.convention.framework == name
    assert report.behaviour.findings == () and report.diagnosis.harmless == ()
    assert report.diagnosis.reproduced_to < 1e-12


def test_a_new_users_path(tmp_path, capsys):
    """A wrong loss, one command, the change that it asks for, green."""
    path = tmp_path / "my_loss.py"
    text = (EXAMPLES / "torch_loss.py").read_text()
    wrong = text.replace(">= 1 / patches.shape[1]", ">= 0.3").replace("s = tokens @ patches.mT",
                                                                      "s = tokens @ F.normalize(patches, dim=-1).mT")
    path.write_text(wrong)
    status, out, _ = run([path, "--html", "none"], capsys)
    assert status == 1 and "threshold.constant(0.3)" in out and "similarity.cosine" in out
    assert "not F.normalize(v, dim=-1)" in out and "1 / v.shape[1]" in out
    path.write_text(text)
    status, out, _ = run([path, "--html", "none"], capsys)
    assert status == 0 and "EQUALS EQ. 6" in out
