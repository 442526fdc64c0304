"""Where a guess of the checker's may be at fault it asks; the question names an option, and the option answers it."""

import pytest

import parity
from parity.checker.calling.trial import CannotRun, Trial, Unclear
from parity.checker.verdict import check

LOSSES = '''
import torch
import torch.nn as nn
import torch.nn.functional as F

def local(v, t, mask, scale, sigma=None, cosine=False, cut=None, each=False):
    keys = F.normalize(v, dim=-1) if cosine else v
    s = t @ keys.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = lo == hi
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = torch.where(s >= (1 / v.shape[1] if sigma is None else sigma), s, 0.0) if cut is None else cut(s)
    c = F.normalize(s / s.sum(-1, keepdim=True) @ v, dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).mT
    ce = -sum(y.masked_fill(~mask[:, None], -torch.inf).log_softmax(-1).diagonal(dim1=1, dim2=2) for y in (z, z.mT))
    ce = torch.where(mask, ce, 0.0)
    return ce if each else (ce.sum(1) / mask.sum(1).clamp_min(1)).mean() / 2

def two_scalars(a, b, m, alpha, beta):
    return local(a, b, m, beta, sigma=alpha)

def five(a, b, m, x, y):
    return local(a, b, m, y, sigma=x)

def two_temperatures(v, t, mask, temp1, temp2):
    return local(v, t, mask, 1 / temp1) + 0 * temp2

def two_losses(v, t, mask, scale):
    return local(v, t, mask, scale), local(v, t, mask, scale, cosine=True)

def softly(v, t, mask, scale):
    return local(v, t, mask, scale, cut=lambda s: (s - 1 / s.shape[-1]).clamp(min=0))

def by_length(v, t, mask, scale):
    ce, length = local(v, t, mask, scale, each=True), torch.where(mask, t.norm(dim=-1), 0.0)
    return ((ce * length).sum(1) / length.sum(1).clamp_min(1e-9)).mean() / 2

def of_two(v, t, mask, scale):
    return local(v, t, mask, scale, sigma=2 / v.shape[1])

class Output:
    def __init__(self, **held):
        self.__dict__.update(held)

def in_an_object(v, t, text_paddings, scale):
    return Output(loss=local(v, t, text_paddings < 0.5, scale), attention=t.detach())

class Settings(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.scale = 14.3 / cfg.heads

    def forward(self, v, t, mask):
        return local(v, t, mask, self.scale)

class Several:
    def sparse(self, patches, tokens, mask, scale):
        return local(patches, tokens, mask, scale)

    def dense(self, patches, tokens, mask, scale):
        return local(patches, tokens, mask, scale, sigma=0.0)
'''


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    path = tmp_path_factory.mktemp("questions") / "mine.py"
    path.write_text(LOSSES)
    return path


@pytest.mark.slow
def test_a_value_that_had_to_be_guessed_is_asked_about(losses):
    with pytest.raises(Unclear, match=r"alpha as 1\.0, beta as 1\.0 had to be guessed.*--set alpha=VALUE"):
        check(f"{losses}:two_scalars")
    assert check(f"{losses}:two_scalars", call="v,t,mask,size:1/P,scale").verdict == "eq6"


@pytest.mark.parametrize("name, words, given", [
    ("five", r"five needs y: add --set y=VALUE.*--call v,t,mask,scale,value:VALUE", {}),
    ("five", "--call v,t,mask,scale: five also needs y: a word for each", {"call": "v,t,mask,scale"}),
    ("two_temperatures", "temp1 and temp2 are both named for a temperature; give one a value, --set temp2=VALUE", {}),
    ("Settings", "its constructor needs .cfg.heads.: add --init cfg.heads=VALUE", {}),
])
def test_what_is_missing_is_named_with_an_option_that_says_it(losses, name, words, given):
    with pytest.raises(ValueError, match=words):
        check(f"{losses}:{name}", **given)


@pytest.mark.slow
@pytest.mark.parametrize("name, stage, words", [
    ("softly", "threshold", "in proportion to eq. 2's similarities less sigma, a soft threshold"),
    ("by_length", "reduction", "right where all tokens' embeddings have one length, and wrong where their lengths differ"),
])
def test_what_was_seen_is_said_and_no_more(losses, name, stage, words):
    report = check(f"{losses}:{name}")
    assert report.diagnosis.stage == stage and words in report.headline


@pytest.mark.slow
def test_a_threshold_that_follows_p_otherwise_is_placed_there(losses):
    report = check(f"{losses}:of_two")
    assert report.verdict == "unexplained" and report.diagnosis.stage == "threshold"
    assert "below 0.03125 get no gradient" in report.headline


def test_an_object_of_outputs_and_paddings_in_the_plural(losses):
    report = check(f"{losses}:in_an_object")
    assert report.verdict == "eq6" and report.convention.word("mask").startswith("padding")


def test_limits_are_positive(losses):
    for limit in ("time_limit", "budget", "memory_limit"):
        with pytest.raises(ValueError, match=f"{limit}: expected more than 0, got -1"):
            check(f"{losses}:five", **{limit: -1})


def test_a_value_that_was_given_is_called_given(losses):
    report = check(f"{losses}:five", set={"x": 0.3})
    assert report.deviations == ("threshold.constant",)
    assert next(item.sure for item in report.convention.items if item.what == "x") == "given"


@pytest.mark.slow
def test_two_losses_of_one_kind_are_not_averaged_where_one_alone_is_known(losses):
    with pytest.raises(Unclear, match=r"returns two fine-grained losses, 0 and 1.*--returns 0=fine"):
        check(f"{losses}:two_losses")
    assert check(f"{losses}:two_losses", returns="0=fine").verdict == "eq6"


@pytest.mark.slow
def test_a_method_that_is_named_is_taken(losses, tmp_path):
    path = tmp_path / "several.py"
    start, methods = LOSSES.partition("def two_scalars")[0], LOSSES.partition("class Several")[2]
    path.write_text(f"{start}class Several{methods}".replace("local(", "_local("))
    with pytest.raises(Unclear, match="name one of"):
        parity.check(path)
    assert parity.check(path, method="sparse").verdict == "eq6"


def test_memory_that_ran_out_is_told_before_a_layout_that_does_not_fit():
    trial = Trial(None)
    trial.keep({"type": "RuntimeError", "message": "shapes", "lines": []}, "f(v)")
    trial.keep({"type": "memory", "message": "it took 5.0 GiB", "lines": []}, "f(w)")
    assert trial.short == ({"type": "memory", "message": "it took 5.0 GiB", "lines": []}, "f(w)")
    assert CannotRun(*trial.short).call == "f(w)"
