"""How sure a reading is: "certain" only where the others were run and differ, "no effect" only where none was measured."""

from pathlib import Path

import pytest

from parity.checker.calling.convention import infer
from parity.checker.calling.target import target_of
from parity.checker.calling.trial import Unclear
from parity.checker.calling.worker import Worker

FOLDER = Path(__file__).parent
LOSSES = '''
import math
import torch
from torch import nn
import torch.nn.functional as F

def groups(v, t):
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo)
    s = torch.where(s >= 1 / v.shape[1], s, 0.0)
    return F.normalize(s / s.sum(-1, keepdim=True) @ v, dim=-1)

def fine(v, t, mask, scale):
    z = scale * groups(v, t) @ F.normalize(t, dim=-1).mT
    low = torch.finfo(z.dtype).min
    a = z.masked_fill(~mask[:, None], low).log_softmax(-1) + z.mT.masked_fill(~mask[:, None], low).log_softmax(-1)
    ce = -torch.where(mask, a.diagonal(dim1=1, dim2=2), 0.0)
    return (ce.sum(1) / mask.sum(1).clamp(min=1)).mean() / 2

def pairs(a, b, scale):
    z = scale * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
    y = torch.arange(len(z))
    return (F.cross_entropy(z, y) + F.cross_entropy(z.T, y)) / 2

def ignores_temperature(v, t, mask, temperature):
    return fine(v, t, mask, 5.0)

def ignores_mask(v, t, mask, scale):
    return fine(v, t, torch.ones_like(mask), scale)

def mask_counts_alone(v, t, mask, scale):
    return fine(v, t, torch.ones_like(mask), scale) * mask.sum() / mask.numel()

def clamped(v, t, mask, temperature):
    return fine(v, t, mask, 1 / temperature.clamp(0.01, 1.0))

def skips_a_patch(v, t, mask, scale):
    return fine(v[:, 1:], t, mask, scale)

def same_place(v, t, mask, scale):
    c, u = groups(v, t), F.normalize(t, dim=-1)
    z = scale * torch.einsum("ald,bld->lab", c, u)
    y = torch.arange(len(v)).expand(len(z), -1)
    return (F.cross_entropy(z.transpose(1, 2), y) + F.cross_entropy(z, y)) / 2

def pooled(v, t, mask, scale):
    return pairs(v.mean(1), (t * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), scale)

def max_pooled(v, t, mask, scale):
    return pairs(v.amax(1), (t * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), scale)

def total(v, t, mask, scale):
    return pooled(v, t, mask, scale) + fine(v, t, mask, scale)

def total_by_length(v, t, mask, scale):
    a, b = pooled(v, t, mask, scale), fine(v, t, mask, scale)
    return {"loss": a + b * mask.float().mean(), "contrastive": a, "grounding": b}

def both(v, t, mask, scale):
    a, b = pooled(v, t, mask, scale), fine(v, t, mask, scale)
    return {"loss": 0.5 * a + b, "contrastive": a, "grounding": b}

def batch_negatives(v, t, mask, scale):
    v = F.normalize(v, dim=-1)
    return pairs(groups(v, t)[mask], t[mask], scale)

def uniform_batch_negatives(v, t, mask, scale):
    return pairs(v.mean(1, keepdim=True).expand(-1, t.shape[1], -1)[mask], t[mask], scale)

def unit_total(v, t, mask, scale):
    v_bar, t_bar = F.normalize(v, dim=-1).mean(1), F.normalize(t, dim=-1).mean(1)
    return pairs(v_bar, t_bar, scale) + fine(v, t, mask, scale)

def takes_an_unnamed_mask(v, t, scale, valid_ones=None):
    return fine(v, t, torch.ones(t.shape[:2], dtype=torch.bool), scale)

def takes_something(v, t, scale, extra=None):
    return fine(v, t, torch.ones(t.shape[:2], dtype=torch.bool), scale)

class Start(nn.Module):
    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(14.2857))
    def forward(self, v, t, mask):
        return fine(v, t, mask, self.logit_scale.exp())

class Sound(nn.Module):
    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    def forward(self, v, t, mask):
        return fine(v, t, mask, self.logit_scale.exp())
'''


@pytest.fixture(scope="module")
def conventions(tmp_path_factory):
    """Name -> conventions, from one process."""
    folder = tmp_path_factory.mktemp("reading")
    (folder / "read_me.py").write_text(LOSSES)
    known = {}
    with Worker(target_of(f"{folder}/read_me.py:fine")) as worker:
        def of(name):
            if name not in known:
                worker.reload(target_of(str(FOLDER / name) if name.endswith(".py") else f"{folder}/read_me.py:{name}"))
                known[name] = infer(worker)
            return known[name]

        yield of


def item(convention, what):
    return next(item for item in convention.items if item.what == what)


def test_a_temperature_has_an_effect_where_several_readings_nearly_pass(conventions):
    found = item(conventions("cases/soft_tau.py")[0], "temperature")
    assert (found.value, found.sure) == ("tau", "certain") and "no effect" not in found.why
    assert "move the loss by 0" in found.why and "read otherwise by" in found.why


def test_no_effect_is_said_where_none_was_measured(conventions):
    found = item(conventions("ignores_temperature")[0], "temperature")
    assert found.sure == "assumed" and found.why.startswith("no effect on the loss: 1/tau of 2.5 and of 5.5")
    assert item(conventions("ignores_mask")[0], "mask").why.startswith("no effect on the loss: three masks")


def test_a_mask_of_which_only_the_sum_counts_has_an_effect(conventions):
    """(4, 3, 2) and (2, 4, 3) have the same sum."""
    assert "no effect" not in item(conventions("mask_counts_alone")[0], "mask").why


def test_a_temperature_that_never_gets_to_zero_is_not_certain(conventions):
    found = item(conventions("clamped")[0], "temperature")
    assert (found.value, found.sure) == ("tau", "assumed") and "still depends on the embeddings" in found.why


def test_a_first_patch_that_is_left_out_may_be_a_fault(conventions):
    with pytest.raises(Unclear, match=r"slot 0 of v moves the loss by 0 on two batches.*--patches v_cls .*--patches v "):
        conventions("skips_a_patch")


@pytest.mark.parametrize("name, kinds, sure, words", [
    ("fine", ["fine"], "certain", "a token alone gives 0"),
    ("pooled", ["global"], "certain", "through the mean of the patches"),
    ("same_place", ["fine"], "likely", "order of tokens"), ("max_pooled", ["global"], "likely", "no loss of a mean"),
    ("total", ["total", "fine"], "likely", "through the mean of the patches alone, on two batches"),
    ("cases/d_batch_negatives_cosine.py", ["fine", "total"], "likely", "single patches"),
    ("batch_negatives", ["fine", "total"], "likely", "single patches"),
    ("uniform_batch_negatives", ["fine", "total"], "likely", "single tokens of two captions meet in it"),
    ("unit_total", ["total", "fine"], "likely", "the mean of the patches' directions alone"),
])
def test_what_the_number_is(conventions, name, kinds, sure, words):
    found = conventions(name)
    assert [kind for c in found for kind in c.losses] == kinds
    assert item(found[0], "returns").sure == sure and words in item(found[0], "returns").why
    if len(found) == 2:                                   # the second says what it is itself
        assert {"fine": "fine-grained", "total": "a weighted total"}[kinds[1]] in item(found[1], "returns").value
        assert item(found[1], "returns").sure == "likely"


def test_weights_of_a_total_are_tried_on_batches_they_were_not_fitted_on(conventions):
    said = {i.value: i.sure for i in conventions("both")[0].items if i.what == "returns"}
    assert said["loss: 1 fine + 0.5 global"] == "certain"
    said = {i.value: i.sure for i in conventions("total_by_length")[0].items if i.what == "returns"}
    assert not any(value.startswith("loss: 1 fine") and sure == "certain" for value, sure in said.items())


def test_no_mask_is_certain_only_where_no_argument_could_be_one(conventions):
    assert item(conventions("takes_something")[0], "mask").sure == "assumed"
    assert "left at None: extra" in item(conventions("takes_something")[0], "mask").why


def test_a_start_that_forgot_exp_or_log_is_noted(conventions):
    note, = conventions("cases/logscale_noexp.py")[0].notes
    assert note == "logit_scale: tau starts at 0.376, which is what log(1/0.07) gives without exp"
    assert "without log" in conventions("Start")[0].notes[0]
    assert conventions("Sound")[0].notes == ()


def test_float32_inside_is_read_with_the_same_certainty(conventions):
    convention = conventions("alarms/e_float32_scale.py")[0]
    assert {i.sure for i in convention.items} == {"certain"}


def test_other_layouts_are_said_not_to_run_because_they_were_run(conventions):
    convention = conventions("fine")[0]
    assert "5 other layouts and the exchange of both do not run" in item(convention, "v").why
