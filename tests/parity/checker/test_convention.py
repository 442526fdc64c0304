"""How a stranger's function is called is found by names and numbers; what cannot be decided is asked, not guessed."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest

from parity.checker.calling.bridges import keep_arrays, put_arrays
from parity.checker.calling.caller import Caller, spec
from parity.checker.calling.convention import infer
from parity.checker.calling.naming import assignments, hints, mask_forms, scale_kinds
from parity.checker.calling.target import target_of
from parity.checker.calling.trial import CannotRun, Unclear
from parity.checker.calling.worker import Worker
from parity.checker.probes import PROBES
from sparc_ref import fine_grained_loss, global_loss

NUMPY = '''
import numpy as np
from sparc_ref import fine_grained_loss, global_loss

def fine(v, t, mask, theta, **options):
    return float(fine_grained_loss(v, t, np.asarray(mask, bool), np.asarray(theta), **options)[0])

def pooled(v, t, mask):
    count = np.maximum(1, mask.sum(1, keepdims=True))
    return v.mean(1), np.where(mask[..., None], t, 0).sum(1) / count

def entropy(z):
    z = z - z.max(1, keepdims=True)
    labels = np.arange(len(z))
    return np.mean(np.log(np.exp(z).sum(1)) - z[labels, labels])

def of_clips_paper(I_f, T_f, t):
    I_e, T_e = (x / np.sqrt((x * x).sum(1, keepdims=True)) for x in (I_f, T_f))
    logits = np.dot(I_e, T_e.T) * np.exp(t)
    return (entropy(logits) + entropy(logits.T)) / 2

def text_first(text, image, text_mask, temperature):
    return fine(image, text, text_mask, -np.log(temperature))

def keyword_only(*, tokens, patches, valid, logit_scale):
    return fine(patches, tokens, valid, np.log(logit_scale))

def takes_lengths(image_tokens, text_tokens, n_words, theta):
    return fine(image_tokens, text_tokens, np.arange(text_tokens.shape[1]) < n_words[:, None], theta)

def needs_float_mask(v, t, mask, scale):
    if mask.dtype.kind != "f":
        raise TypeError("a float mask")
    return fine(v, t, mask > 0, np.log(scale))

def true_is_padding(v, t, m, scale):
    return fine(v, t, ~m, np.log(scale))

def additive(v, t, attention_bias, scale):
    return fine(v, t, attention_bias > -1, np.log(scale))

def raises_anyhow(a, b, c):
    raise RuntimeError("nothing is right")

def wants_a_flat_mask(x, y, mask, scale):
    if mask.ndim != 1 or x.ndim != 2 or len(x) < 30 or len(mask) != len(y):
        raise RuntimeError("nothing is right")
    b = len(x) // 10
    return fine(x.reshape(b, -1, 16), y.reshape(b, -1, 16), mask.reshape(b, -1) > 0, np.log(scale))

def square_maps(fmap, words, mask, scale):
    batch, width, side, other = fmap.shape
    if side != other:
        raise AssertionError
    return feature_map(fmap, words, mask, scale)

def feature_map(fmap, words, mask, scale):
    b, d, h, w = fmap.shape
    return fine(fmap.reshape(b, d, h * w).swapaxes(1, 2), words, mask, np.log(scale))

def channels_last(image, words, mask, scale):
    b, h, w, d = image.shape
    return fine(image.reshape(b, h * w, d), words, mask, np.log(scale))

def with_cls(vit, words, mask, scale):
    return fine(vit[:, 1:], words, mask, np.log(scale))

def log_of_tau(v, t, mask, log_temperature):
    return fine(v, t, mask, -log_temperature)

def misleading_name(v, t, mask, tau):
    return fine(v, t, mask, np.log(tau))

def no_names(a, b, c, d):
    return fine(b, a, c, -np.log(d))

def no_mask(v, t, scale):
    return fine(v, t, np.ones(t.shape[:2], bool), np.log(scale))

def fixed_temperature(v, t, mask):
    return fine(v, t, mask, 2.0)

def default_sigma(v, t, mask, scale, threshold=0.25, eps=1e-8, verbose=False):
    return fine(v, t, mask, np.log(scale), sigma=threshold)

def needs_sigma(v, t, mask, sigma, scale):
    return fine(v, t, mask, np.log(scale), sigma=sigma)

def needs_count(v, t, mask, scale, num_patches):
    return fine(v, t, mask, np.log(scale), sigma=1 / num_patches)

def mask_with_default(v, t, scale, mask=None):
    return fine(v, t, np.ones(t.shape[:2], bool) if mask is None else mask, np.log(scale))

def both(image_patches, text_tokens, mask, theta, image_global, text_global):
    g = float(global_loss(image_global, text_global, np.asarray(theta))[0])
    f = fine(image_patches, text_tokens, mask, theta)
    return {"loss": 0.5 * g + 2 * f, "contrastive": g, "grounding": f, "accuracy": 0.5}

def total(v, t, mask, theta, lambda_g=0.5):
    v_bar, t_bar = pooled(v, t, mask)
    return lambda_g * float(global_loss(v_bar, t_bar, np.asarray(theta))[0]) + fine(v, t, mask, theta)

def pair(v, t, mask, theta):
    trace = fine_grained_loss(v, t, mask, np.asarray(theta))[1]
    n = np.maximum(1, mask.sum(1))
    return tuple((trace[name].sum(1) / n).mean() for name in ("loss_vt", "loss_tv"))

def per_caption(v, t, mask, theta):
    trace = fine_grained_loss(v, t, mask, np.asarray(theta))[1]
    return (trace["loss_vt"] + trace["loss_tv"]).sum(1) / np.maximum(1, mask.sum(1)) / 2

def per_token(v, t, mask, theta):
    trace = fine_grained_loss(v, t, mask, np.asarray(theta))[1]
    return {"loss": (trace["loss_vt"] + trace["loss_tv"]) / 2, "weights": trace["weights"]}

def only_global(image_embeds, text_embeds, logit_scale):
    return float(global_loss(image_embeds, text_embeds, np.log(logit_scale))[0])

def closure(v, t, mask, scale):
    loss, _, back = fine_grained_loss(v, t, mask, np.log(scale))
    def gradients(dloss=1.0):
        dv, dt, dtheta = back(dloss)
        return dv, dt, dtheta / scale
    return loss, gradients

def returns_gradients(v_cls, t, mask, tau):
    loss, _, back = fine_grained_loss(v_cls[:, 1:], t, mask, -np.log(tau))
    dv, dt, dtheta = back()
    return {"loss": loss, "d_v_cls": np.concatenate([0 * dv[:, :1], dv], 1), "d_t": dt, "d_tau": -dtheta / tau}

def returns_one_gradient(v, t, mask, tau):
    loss, _, back = fine_grained_loss(v, t, mask, -np.log(tau))
    return loss, -back()[1]

def needs_more(v, t, mask, scale, image_ids, caption_ids):
    return fine(v, t, mask, np.log(scale))

def breaks(v, t, mask, scale):
    return fine(v, t, mask[:, :1] & mask[:, :2], np.log(scale))

def three(v, t, mask, theta):
    f = fine(v, t, mask, theta)
    return {"a": f, "b": f ** 2, "c": f ** 3}

def gives_nothing(v, t, mask, theta):
    return None

def gives_similarity(v, t, mask, theta):
    return {"similarity": t @ v.swapaxes(1, 2), "name": "sparc"}

def takes_one(v):
    return v.sum()

def takes_anything(*args, **kwargs):
    return 0.0
'''
TORCH = '''
import math
import torch
from torch import nn
import torch.nn.functional as F

def fine(v, t, mask, scale):
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo)
    s = torch.where(s >= 1 / v.shape[1], s, 0.0)
    c = F.normalize(s / s.sum(-1, keepdim=True) @ v, dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).mT
    low = torch.finfo(z.dtype).min
    a = z.masked_fill(~mask[:, None], low).log_softmax(-1) + z.mT.masked_fill(~mask[:, None], low).log_softmax(-1)
    ce = -torch.where(mask, a.diagonal(dim1=1, dim2=2), 0.0)
    return (ce.sum(1) / mask.sum(1).clamp(min=1)).mean() / 2

class Learned(nn.Module):
    def __init__(self, dim, start=0.07):
        super().__init__()
        self.tau = nn.Parameter(torch.tensor([start]))
    def forward(self, v, t, mask):
        return fine(v, t, mask, 1 / self.tau)

class Numbers(nn.Module):
    def __init__(self, temperature=0.1):
        super().__init__()
        self.temperature = temperature
    def forward(self, v, t, mask):
        return fine(v, t, mask, 1 / self.temperature)

class Model(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.image_encoder = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.Flatten(2))
        self.text_encoder = nn.Embedding(100, width)
        self.image_proj = nn.Linear(width, width)
        self.text_proj = nn.Linear(width, width)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    def forward(self, images, token_ids, attention_mask):
        v = self.image_proj(self.image_encoder(images))
        t = self.text_proj(self.text_encoder(token_ids))
        return {"loss": fine(v, t, attention_mask, self.logit_scale.exp())}

class Unknown(nn.Module):
    def __init__(self, recipe):
        super().__init__()
    def forward(self, v, t, mask):
        return fine(v, t, mask, 1.0)

class Trainer(nn.Module):
    def training_loss(self, patches, tokens, mask, scale):
        return fine(patches, tokens, mask, scale)

def takes_a_number(v, t, mask, scale):
    return fine(v, t, mask, math.exp(scale) if not torch.is_tensor(scale) else scale.no_such_attribute)

single = torch.compile(fine)
'''


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """One process for NumPy and one for torch; each test loads its function there."""
    folder = tmp_path_factory.mktemp("conventions")
    (folder / "in_numpy.py").write_text(NUMPY)
    (folder / "in_torch.py").write_text(TORCH)
    made = {name: Worker(target_of(f"{folder}/{name}.py:{first}")) for name,
            first in (("in_numpy", "fine"), ("in_torch", "fine"))}

    def of(name, file="in_numpy"):
        made[file].reload(target_of(f"{folder}/{file}.py:{name}"))
        return made[file]

    yield of
    for w in made.values():
        w.close()


def sure(convention, what):
    return next(item.sure for item in convention.items if item.what == what)


@pytest.mark.parametrize("name, written", [
    ("text_first", "t,v,mask,tau"), ("keyword_only", "tokens=t,patches=v,valid=mask,logit_scale=scale"),
    ("takes_lengths", "v,t,lengths,theta"), ("needs_float_mask", "v,t,mask_float,scale"),
    ("true_is_padding", "v,t,padding,scale"),
    ("additive", "v,t,additive,scale"), ("feature_map", "v_bdhw,t,mask,scale"), ("channels_last", "v_bhwd,t,mask,scale"),
    ("with_cls", "v_cls,t,mask,scale"), ("log_of_tau", "v,t,mask,log_tau"), ("misleading_name", "v,t,mask,scale"),
    ("no_names", "t,v,mask,tau"), ("no_mask", "v,t,scale"), ("fixed_temperature", "v,t,mask"),
    ("default_sigma", "v,t,mask,scale"),
    ("needs_sigma", "v,t,mask,size:1/P,scale"), ("needs_count", "v,t,mask,scale,size:P"),
    ("mask_with_default", "v,t,scale,mask"),
    ("both", "v,t,mask,theta,v_bar,t_bar"), ("total", "v,t,mask,theta"), ("only_global", "v_bar,t_bar,scale"),
])
def test_the_call_is_found_and_its_numbers_are_the_papers(workers, name, written):
    w = workers(name)
    convention = infer(w)[0]
    assert convention.written == written
    probe = PROBES["padded" if name != "no_mask" else "unpadded"]
    answer = Caller(w, convention)(probe)
    sigma = {"default_sigma": 0.25}.get(name)
    theta = np.array(2.0 if name == "fixed_temperature" else probe.theta)
    fine = float(fine_grained_loss(probe.v, probe.t, probe.mask, theta, sigma=sigma)[0])
    for loss, value in answer.losses.items():
        pooled = probe.v.mean(1), np.where(probe.mask[..., None], probe.t, 0).sum(1) / probe.mask.sum(1, keepdims=True)
        bars = (probe.v_bar, probe.t_bar) if name != "total" else pooled
        whole = float(global_loss(*bars, theta)[0])
        assert value == pytest.approx({"fine": fine, "global": whole, "total": 0.5 * whole + fine}[loss], rel=1e-12)


@pytest.mark.parametrize("name, losses", [
    ("both", {"fine": (("['grounding']",), (1.0,)), "global": (("['contrastive']",), (1.0,))}),
    ("pair", {"fine": (("[0]", "[1]"), (0.5, 0.5))}), ("per_caption", {"fine": (("",), (1.0,))}),
    ("per_token", {"fine": (("['loss']",), (1.0,))}), ("closure", {"fine": (("[0]",), (1.0,))}),
    ("total", {"total": (("",), (1.0,))}),
])
def test_the_losses_among_the_outputs_are_found(workers, name, losses):
    w = workers(name)
    convention = infer(w)[0]
    assert convention.losses == losses
    probe = PROBES["padded"]
    if "fine" in losses:
        want = float(fine_grained_loss(probe.v, probe.t, probe.mask, np.asarray(probe.theta))[0])
        assert Caller(w, convention)(probe).losses["fine"] == pytest.approx(want, rel=1e-12)


def test_a_total_is_told_with_its_weights(workers):
    items = infer(workers("both"))[0].items
    assert any(item.value == "loss: 2 fine + 0.5 global" for item in items)


@pytest.mark.parametrize("name", ["closure", "returns_gradients"])
def test_gradients_that_come_back_are_those_of_the_inputs(workers, name):
    w = workers(name)
    probe = PROBES["padded"]
    given = Caller(w, infer(w)[0])(probe).grads["fine"]
    _, _, back = fine_grained_loss(probe.v, probe.t, probe.mask, np.asarray(probe.theta))
    for leaf, want in zip(("v", "t", "theta"), back()):
        np.testing.assert_allclose(given[leaf], want, rtol=1e-9, atol=1e-14)


def test_what_raises_whatever_it_gets_is_not_tried_a_thousand_times(workers):
    w = workers("raises_anyhow")
    before = w.asked
    with pytest.raises(CannotRun) as stop:
        infer(w)
    assert stop.value.error["message"] == "nothing is right" and any("each raises this" in x for x in stop.value.notes)
    assert 200 < w.asked - before < 400
    assert infer(workers("wants_a_flat_mask"))[0].written == "v_flat,t_flat,mask_flat,scale"


def test_code_that_makes_a_square_of_the_patches_gets_one(workers):
    convention = infer(workers("square_maps"))[0]
    assert convention.written == "v_bdhw,t,mask,scale"
    assert "v_bhwd" not in str(convention.items)


def test_an_array_that_is_taken_for_no_gradient_is_named(workers):
    notes = infer(workers("returns_one_gradient"))[0].notes
    assert any("output 1 has the shape of the tokens and was taken for no gradient" in x for x in notes)
    assert not any("taken for no gradient" in x for x in infer(workers("returns_gradients"))[0].notes)


def test_numbers_overrule_names_and_say_so(workers):
    convention = infer(workers("misleading_name"))[0]
    assert sure(convention, "tau") == "certain" and convention.word("scale") == "scale"
    assert sure(infer(workers("true_is_padding"))[0], "m") == "certain"
    assert sure(infer(workers("no_names"))[0], "a") == "assumed"


def test_what_is_given_is_not_inferred(workers):
    w = workers("no_names")
    given = infer(w, {"call": "t,v,mask,tau"})[0]
    assert given.written == "t,v,mask,tau" and all(item.sure == "given" for item in given.items if item.what in "abcd")
    given = infer(workers("default_sigma"), {"sigma": "1/P", "set": {"verbose": True}})[0]
    assert given.written == "v,t,mask,scale,size:1/P,verbose=value:true"
    given = infer(workers("three"), {"returns": "b=fine"})[0]
    assert given.losses == {"fine": (("['b']",), (1.0,))}


@pytest.mark.parametrize("name, given, words", [
    ("needs_more", {}, "--set image_ids=VALUE"), ("three", {}, "--returns a=fine"),
    ("no_names", {"call": "t,v,mask,taus"}, "expected one of"),
    ("three", {"returns": "d=fine"}, "no output 'd'; there are a, b, c"),
    ("three", {"returns": "a=loss"}, "expected fine, global or total"),
])
def test_one_keyword_is_asked_for(workers, name, given, words):
    with pytest.raises(ValueError, match=words):
        infer(workers(name), given)


def test_what_raises_is_told_with_the_call_and_their_line(workers):
    with pytest.raises(CannotRun) as stop:
        infer(workers("breaks"))
    assert stop.value.error["type"] == "ValueError" and "in breaks" in " ".join(stop.value.error["lines"])
    assert stop.value.call.startswith("breaks(v=patches (B,P,D)")


@pytest.mark.parametrize("name, words", [
    pytest.param("gives_nothing", r"gives_nothing\(v=patches .* returns NoneType: expected a number", marks=pytest.mark.slow),
    ("gives_similarity", r"v=patches \(B,P,D\).* returns \w+ \(3, 6, 10\), str: expected a number"),
    ("takes_one", "which arguments are patches and tokens"), ("takes_anything", "which arguments are patches and tokens"),
])
def test_what_can_be_no_loss_is_told(workers, name, words):
    with pytest.raises(Unclear, match=words):
        infer(workers(name))


@pytest.mark.parametrize("name, written, attributes, stubs", [
    ("fine", "v,t,mask,scale", {}, {}), ("single", "v,t,mask,scale", {}, {}), ("Learned", "v,t,mask", {"tau": "tau"}, {}),
    ("Numbers", "v,t,mask", {"temperature": "tau"}, {}), ("Trainer.training_loss", "v,t,mask,scale", {}, {}),
    ("Model", "v,t,mask", {"logit_scale": "theta"},
     dict.fromkeys(("image_encoder", "text_encoder", "image_proj", "text_proj"), "identity")),
])
def test_torch_functions_modules_and_models(workers, name, written, attributes, stubs):
    w = workers(name, "in_torch")
    convention = infer(w)[0]
    assert (convention.written, convention.attributes, convention.stubs) == (written, attributes, stubs)
    probe = PROBES["padded"]
    answer = Caller(w, convention)(probe)
    loss, _, back = fine_grained_loss(probe.v, probe.t, probe.mask, np.asarray(probe.theta))
    tolerance = 1e-10 if name != "Numbers" else 1e-12
    assert answer.losses["fine"] == pytest.approx(float(loss), rel=tolerance)
    for leaf, want in zip(("v", "t", "theta"), back()):
        if leaf == "theta" and name == "Numbers":         # a plain number is not learned
            assert leaf not in answer.grads["fine"]
            continue
        np.testing.assert_allclose(answer.grads["fine"][leaf], want, rtol=1e-6, atol=1e-12)


def test_a_constructor_that_needs_what_nobody_knows_is_asked_for(workers):
    with pytest.raises(Unclear, match="--init recipe=VALUE"):
        infer(workers("Unknown", "in_torch"))
    assert infer(workers("Unknown", "in_torch"), {"init": {"recipe": None}})[0].written == "v,t,mask"


def test_the_pseudo_code_of_clip_takes_pooled_embeddings(workers):
    """It would run on patches and packed tokens as well."""
    (convention,) = infer(workers("of_clips_paper"))
    assert convention.written == "v_bar,t_bar,theta" and list(convention.losses) == ["global"]


def test_arrays_are_taken_out_of_what_is_returned_and_put_back():
    """So that what a compiled JAX function returns has the paths that it has uncompiled."""
    class Pair(NamedTuple):
        one: np.ndarray
        more: list

    @dataclass
    class Losses:
        total: np.ndarray
        parts: dict
        note: str = ""

    a, b, c = (np.full(2, x) for x in (1.0, 2.0, 3.0))
    for made in (Pair(a, [b, (c, 7)]), Losses(a, {"x": b, "y": Pair(c, [])}, "kept")):
        arrays, structure = keep_arrays(made, lambda x: isinstance(x, np.ndarray))
        assert [float(x[0]) for x in arrays] == [1, 2, 3] and type(structure) is type(made)
        back = put_arrays(structure, [10 * x for x in arrays])
        assert type(back) is type(made) and keep_arrays(back, lambda x: isinstance(x, np.ndarray))[0][2][0] == 30
        assert repr(made).replace("1.", "10.").replace("2.", "20.").replace("3.", "30.") == repr(back)


def test_names_alone():
    names = [{"name": n} for n in ("image_embeds", "text_embeds", "patch_tokens", "text_tokens", "attention_mask")]
    roles = assignments(names)[0][1]
    assert roles == {"image_embeds": "v_bar", "text_embeds": "t_bar", "patch_tokens": "v", "text_tokens": "t",
                     "attention_mask": "mask"}
    of_clip = [{"name": n} for n in ("I_f", "T_f", "t")]   # the pseudo-code of its paper: two pooled sides and a temperature
    assert {"I_f": "v_bar", "T_f": "t_bar", "t": "scale"} in [roles for _, roles in assignments(of_clip)]
    assert max(hints("zimg"), key=hints("zimg").get) == "v" and max(hints("etext"), key=hints("etext").get) == "t"
    assert [scale_kinds(x)[0] for x in ("inverse_temperature", "log_inv_tau", "T")] == ["scale", "theta", "tau"]
    assert mask_forms("key_padding_mask")[0] == "padding" and mask_forms("cap_lens")[0] == "lengths"


def test_words_are_checked():
    with pytest.raises(ValueError, match=r"(?s)'masks': expected one of these words; did you mean 'mask'.*patches +v, v_bdp"):
        spec("masks")
