"""What is taken as it is: layouts, patch masks, one method, an instance, towers; what is asked instead of called wrongly."""

import subprocess
import sys

import numpy as np
import pytest

import parity
from parity.checker.calling.caller import Caller
from parity.checker.calling.convention import infer
from parity.checker.calling.load import keys_of
from parity.checker.calling.taken import grouped
from parity.checker.calling.target import target_of
from parity.checker.calling.trial import CannotRun, Unclear
from parity.checker.calling.worker import Worker
from parity.checker.probes import PROBES
from sparc_ref import fine_grained_loss

TAKES = '''
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

def text_bdl(patches, tokens, mask, scale):
    return fine(patches, tokens.transpose(1, 2), mask, scale)

def both_channels_first(patches, tokens, mask, scale):
    return fine(patches.mT, tokens.mT, mask, scale)

def sequence_first(patches, tokens, key_padding_mask, scale):
    return fine(patches.transpose(0, 1), tokens.transpose(0, 1), ~key_padding_mask, scale)

def all_sequence_first(patches, tokens, mask, temperature):
    return fine(patches.transpose(0, 1), tokens.transpose(0, 1), mask.T, 1 / temperature)

def sequence_first_with_cls(vit_out, text_out, text_pad, tau):
    return fine(vit_out[1:].permute(1, 0, 2), text_out.permute(1, 0, 2), ~text_pad, 1 / tau)

def log_tau_exp(patches, tokens, mask, log_tau):
    return fine(patches, tokens, mask, torch.exp(-log_tau))

def squeezed_mask(regions, words, keep, scale):
    keep = keep.squeeze(-1) > 0.5
    return fine(regions, words, keep, scale)

class Step:
    def training_step(self, batch, batch_idx=0):
        patches, tokens, mask, scale = batch
        return fine(patches, tokens, mask, scale)

def by_length(img_seq, txt_seq, txt_len, inv_temp):
    return fine(img_seq, txt_seq, torch.arange(txt_seq.shape[1]) < txt_len.view(-1, 1), inv_temp)

def loop_over_second_axis(image, text, mask, scale):
    each = [fine(image[:, i][None], text[:, i][None], mask[i][None], scale) for i in range(text.shape[1])]
    return torch.stack(each).mean()

def loop_without_mask(image, text, scale):
    one = torch.ones(1, text.shape[0], dtype=torch.bool)
    each = [fine(image[:, i][None], text[:, i][None], one, scale) for i in range(text.shape[1])]
    return torch.stack(each).mean()

def patch_mask_true(patches, patch_mask, tokens, token_mask, scale):
    assert patch_mask.shape == patches.shape[:2]
    return fine(patches.masked_fill(~patch_mask[..., None], 0), tokens, token_mask, scale)

def patch_mask_padding(image_features, text_features, image_padding_mask, text_padding_mask, scale):
    return fine(image_features.masked_fill(image_padding_mask[..., None], 0), text_features, ~text_padding_mask, scale)

def patch_mask_float(image_features, image_mask, text_features, text_mask, scale):
    return fine(image_features * image_mask.unsqueeze(-1), text_features, text_mask.bool(), scale)

class OneMethod:
    def __init__(self, temperature=0.07):
        self.temperature = temperature
    def compute(self, v, t, mask):
        return fine(v, t, mask, 1 / self.temperature)

class OneStatic:
    @staticmethod
    def loss(v, t, mask, tau):
        return fine(v, t, mask, 1 / tau)

class NoForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(2.66))
    def training_loss(self, v, t, mask):
        return fine(v, t, mask, self.logit_scale.exp())

class TwoMethods:
    def align(self, v, t, mask, tau):
        return fine(v, t, mask, 1 / tau)
    def contrast(self, v, t, mask, tau):
        return fine(v, t, mask, 1 / tau)

class Towers(nn.Module):
    def __init__(self, vision_tower, text_tower, embed_dim):
        super().__init__()
        self.vision, self.text = vision_tower, text_tower
        self.proj = nn.Linear(vision_tower.config.hidden_size, embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(2.66))
    def forward(self, pixel_values, input_ids, attention_mask):
        v = self.proj(self.vision(pixel_values=pixel_values).last_hidden_state)
        t = self.text(input_ids, attention_mask=attention_mask).last_hidden_state
        return fine(v, t, attention_mask, self.logit_scale.exp())

class Annotated(nn.Module):
    def __init__(self, encode: nn.Module):
        super().__init__()
        self.encode = encode
    def forward(self, image, text, mask, scale):
        return fine(self.encode(image), text, mask, scale)

def five_axes(patches, tokens, mask, scale):
    b, n, h, w, d = patches.shape
    return fine(patches.reshape(b, n * h * w, d), tokens, mask, scale)

def a_dict(batch, scale):
    return fine(batch["v"], batch["t"], batch["mask"], scale)

def a_config(vision, text, mask, cfg):
    return fine(vision, text, mask, 1 / cfg["tau"])

class Batch(nn.Module):
    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(2.66))
    def forward(self, batch):
        return {"loss": fine(batch.patches, batch.tokens, batch.mask, self.log_scale.exp())}

def flat_captions(patches, tokens, mask_of, lengths, scale):
    rows = torch.split(tokens, lengths)
    each = [fine(v[None], t[None], torch.ones(1, len(t), dtype=torch.bool), scale) for v, t in zip(patches, rows)]
    return torch.stack(each).mean()

def packed(patches, tokens, owner, scale):
    return flat_captions(patches, tokens, owner, torch.bincount(owner, minlength=len(patches)).tolist(), scale)

def packed_ends(patches, tokens, cu_seqlens, scale):
    return flat_captions(patches, tokens, None, cu_seqlens.diff().tolist(), scale)

def packed_lengths(patches, tokens, lengths, scale):
    assert tokens.shape == (int(lengths.sum()), patches.shape[-1])
    return flat_captions(patches, tokens, None, lengths.tolist(), scale)

def ragged(images, captions, scale):
    """captions: a list of (L_i,D)"""
    return flat_captions(images, torch.cat(list(captions)), None, [len(t) for t in captions], scale)

def loops(images, captions, scale):
    each = [fine(v[None], t[None], torch.ones(1, len(t), dtype=torch.bool), scale) for v, t in zip(images, captions)]
    return torch.stack(each).mean()

def wide_mask(patches, tokens, attention_mask, scale):
    assert attention_mask.shape == (len(tokens), 1, 1, tokens.shape[1])
    return fine(patches, tokens, attention_mask[:, 0, 0].bool(), scale)

def added_mask(patches, tokens, extended_attention_mask, scale):
    assert extended_attention_mask.shape == (len(tokens), 1, 1, tokens.shape[1])
    return fine(patches, tokens, extended_attention_mask[:, 0, 0] == 0, scale)

def narrow_mask(patches, tokens, mask, scale):
    assert mask.shape == (len(tokens), 1, tokens.shape[1])
    return fine(patches, tokens, mask[:, 0].bool(), scale)

def pairs_mask(patches, tokens, pair_mask, scale):
    return fine(patches, tokens, pair_mask.diagonal(dim1=1, dim2=2), scale)

def a_triple(batch, scale):
    v, t, mask = batch
    return fine(v, t, mask, scale)

def by_keywords(**batch):
    return {"fine": fine(batch["image_patches"], batch["words"], batch["real"], 1 / batch["tau"])}

class Pair:
    """forward, then backward"""
    def forward(self, v, t, mask, tau):
        self.leaves = [torch.tensor(x, requires_grad=True) for x in (v, t, tau)]
        self.loss = fine(self.leaves[0], self.leaves[1], torch.tensor(mask), 1 / self.leaves[2])
        return self.loss.item()
    def backward(self):
        return tuple(g.numpy() for g in torch.autograd.grad(self.loss, self.leaves))

def without_first(visual, textual, mask, scale):
    return fine(visual[:, 1:], textual, mask, scale)

def with_class_token(visual, textual, mask, scale):
    """visual: the class token first"""
    return fine(visual[:, 1:], textual, mask, scale)

def a_log(v, t, mask, log_scale):
    return fine(v, t, mask, log_scale)

class ExpForgotten(nn.Module):
    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
    def forward(self, v, t, mask):
        return fine(v, t, mask, self.log_scale)

def a_pair(features, mask, scale):
    v, t = features
    return fine(v, t, mask, scale)

def checked(patches, tokens, mask, scale):
    assert scale.ndim == 3
    return fine(patches, tokens, mask, scale)

def one(v, t, scale):
    return fine(v[None], t[None], torch.ones(1, len(t), dtype=torch.bool), scale)

def flattened(v, t, mask, batch_size, scale):
    return fine(*(x.unflatten(0, (batch_size, -1)) for x in (v, t, mask)), scale)

def packed_both(q, k, cu_seqlens_q, cu_seqlens_k, inv_temp):
    pairs = zip(k.split(cu_seqlens_k.diff().tolist()), q.split(cu_seqlens_q.diff().tolist()))
    return torch.stack([one(v, t, inv_temp) for v, t in pairs]).mean()

def triples(batch, inv_tau):
    return torch.stack([one(v, t[:n], inv_tau) for v, t, n in batch]).mean()

def pairs(batch, tau):
    return torch.stack([one(*pair, 1 / tau) for pair in batch]).mean()

def dicts(samples, scale):
    return sum(one(s["patches"], s["tokens"], scale) for s in samples) / len(samples)

def one_sample(v, t, scale):
    s = t @ v.T
    s = (s - s.amin(1, keepdim=True)) / (s.amax(1, keepdim=True) - s.amin(1, keepdim=True))
    c = F.normalize(torch.where(s >= 1 / v.shape[0], s, 0.0) @ v, dim=1)
    z, y = scale * c @ F.normalize(t, dim=1).T, torch.arange(t.shape[0])
    return (F.cross_entropy(z, y) + F.cross_entropy(z.T, y)) / 2

def one_sample_masked(patches, tokens, mask, tau):
    assert patches.dim() == 2 and mask.dim() == 1
    return one(patches, tokens[mask], 1 / tau)

def cls_in_both(image_hidden, text_hidden, text_mask, scale):
    """Slot 0 of both is the [CLS] token."""
    return fine(image_hidden[:, 1:], text_hidden[:, 1:], text_mask[:, 1:], scale)

def nested(batch, scale):
    return fine(batch["image"]["patches"], batch["text"].get("tokens"), batch["text"]["mask"], scale)

def by_helper(batch, scale):
    return fine(*unpacked(batch), scale)

def unpacked(batch):
    return batch["v"], batch["t"], batch["valid"]

def star(*tensors):
    v, t, mask, scale = tensors
    return fine(v, t, mask, scale)

def indexed(inputs, tau):
    return fine(inputs[0], inputs[1], inputs[2], 1 / tau)

class Config:
    def __init__(self, temperature=0.07):
        self.temperature = temperature

class Configured(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.log_tau = nn.Parameter(torch.tensor(cfg.temperature).log())
    def forward(self, v, t, mask):
        return fine(v, t, mask, (-self.log_tau).exp())

class ConfiguredPlain:
    def __init__(self, config):
        self.tau = config.temperature
    def __call__(self, v, t, mask):
        return fine(v, t, mask, 1 / self.tau)

class Scaler(nn.Module):
    def __init__(self):
        super().__init__()
        self.t_prime = nn.Parameter(torch.tensor(2.66))

class ScaledWithin(nn.Module):
    def __init__(self):
        super().__init__()
        self.scaler = Scaler()
    def forward(self, v, t, mask):
        return fine(v, t, mask, self.scaler.t_prime.exp())

def makes(temperature):
    def loss(v, t, mask):
        return fine(v, t, mask, 1 / temperature)
    return loss

def sum_and_count(v, t, mask, scale):
    each = torch.stack([one(a, b[m], scale) for a, b, m in zip(v, t, mask)])
    return each.sum(), mask.any(1).sum()

def mean_and_count(v, t, mask, scale):
    return fine(v, t, mask, scale), mask.sum()

def list_of_losses(vs, ts, scale):
    """Lists of (P,D) and (L_i,D)."""
    return [one(v, t, scale) for v, t in zip(vs, ts)]

def column_mask(v, t, m, scale):
    assert m.shape[2:] == (1,)
    return fine(v, t, m[..., 0], scale)

def last_token(v, t, ends, scale):
    return fine(v, t, torch.arange(t.shape[1]) <= ends[:, None], scale)

def listed_lengths(v, t, lens, scale):
    assert type(lens) is list
    return fine(v, t, torch.arange(t.shape[1]) < torch.tensor(lens)[:, None], scale)

def zeros_are_padding(v, t, scale):
    mask = (t != 0).any(-1)
    return fine(v, torch.where(mask[..., None], t, 1.0), mask, scale)

def of_a_run(v, t, mask, scale, step):
    return fine(v, t, mask, scale)

def not_a_layout(features, num_patches, mask, scale):
    return fine(features[:, :num_patches], features[:, num_patches:], mask, scale)

def width_first(patches, tokens, mask, scale):
    return fine(patches.permute(1, 2, 0), tokens, mask, scale)

def a_typo(patches, tokens, mask, scale):
    return fine(patches, tokens, maskk, scale)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    (folder / "takes.py").write_text(TAKES)
    return folder


@pytest.fixture(scope="module")
def worker(folder):
    with Worker(target_of(f"{folder}/takes.py:fine")) as made:
        def of(name):
            made.reload(target_of(f"{folder}/takes.py:{name}"))
            return made

        yield of


CALLED = [
    ("text_bdl", "v,t_bdl,mask,scale"), ("both_channels_first", "v_bdp,t_bdl,mask,scale"),
    ("sequence_first", "v_pbd,t_lbd,padding,scale"), ("all_sequence_first", "v_pbd,t_lbd,mask_lb,tau"),
    ("sequence_first_with_cls", "v_pbd_cls,t_lbd,padding,tau"), ("log_tau_exp", "v,t,mask,log_tau"),
    ("squeezed_mask", "v,t,mask_bl1,scale"),
    ("Step", "batch[0] (patches)=v,batch[1] (tokens)=t,batch[2] (mask)=mask,batch[3] (scale)=scale"),
    ("by_length", "v,t,lengths,scale"), ("loop_over_second_axis", "v_pbd,t_lbd,mask,scale"),
    ("patch_mask_true", "v,v_mask,t,mask,scale"),
    ("patch_mask_padding", "v,t,v_padding,padding,scale"), ("patch_mask_float", "v,v_mask,t,mask,scale"),
    ("OneMethod", "v,t,mask"), ("OneStatic", "v,t,mask,tau"), ("NoForward", "v,t,mask"), ("Towers", "v,t,mask"),
    ("Annotated", "v,t,mask,scale"), ("a_dict", "batch['v']=v,batch['t']=t,batch['mask']=mask,scale=scale"),
    ("a_config", "vision=v,text=t,mask=mask,cfg['tau']=tau"), ("Batch", "batch.patches=v,batch.tokens=t,batch.mask=mask"),
    ("packed", "v,t_packed,owner,scale"), ("packed_ends", "v,t_packed,cu_seqlens,scale"),
    ("packed_lengths", "v,t_packed,lengths,scale"), ("ragged", "v_list,t_list,scale"),
    ("wide_mask", "v,t,mask_b11l,scale"), ("added_mask", "v,t,additive_b11l,scale"), ("narrow_mask", "v,t,mask_b1l,scale"),
    ("pairs_mask", "v,t,mask_bll,scale"),
    ("a_triple", "batch[0] (v)=v,batch[1] (t)=t,batch[2] (mask)=mask,scale=scale"),
    ("by_keywords", "image_patches=v,words=t,real=mask,tau=tau"),
    ("a_pair", "features[0] (v)=v,features[1] (t)=t,mask=mask,scale=scale"),
    ("flattened", "v_flat,t_flat,mask_flat,size:B,scale"),
    ("triples", "batch[*][0] (v)=v,batch[*][1] (t)=t,batch[*][2] (n)=lengths,inv_tau=scale"),
    ("one_sample", "v,t_list,scale"), ("cls_in_both", "v_cls,t_cls,mask_cls,scale"), ("Configured", "v,t,mask"),
    *(pytest.param(*x, marks=pytest.mark.slow) for x in (
        ("packed_both", "t_packed,v_flat,cu_seqlens,v_cu_seqlens,scale"), ("one_sample_masked", "v,t,mask,tau"),
        ("pairs", "batch[*][0] (v)=v,batch[*][1] (t)=t_list,tau=tau"),
        ("dicts", "samples[*]['patches']=v,samples[*]['tokens']=t_list,scale=scale"),
        ("nested", "batch['image']['patches']=v,batch['text']['tokens']=t,batch['text']['mask']=mask,scale=scale"),
        ("by_helper", "batch['v']=v,batch['t']=t,batch['valid']=mask,scale=scale"),
        ("star", "*tensors[0] (v)=v,*tensors[1] (t)=t,*tensors[2] (mask)=mask,*tensors[3] (scale)=scale"),
        ("indexed", "inputs[0] (v)=v,inputs[1] (t)=t,inputs[2] (mask)=mask,tau=tau"), ("ConfiguredPlain", "v,t,mask"),
        ("ScaledWithin", "v,t,mask"), ("makes", "v,t,mask,temperature=tau"), ("sum_and_count", "v,t,mask,scale"),
        ("mean_and_count", "v,t,mask,scale"), ("list_of_losses", "v_list,t_list,scale"), ("column_mask", "v,t,mask_bl1,scale"),
        ("last_token", "v,t,ends,scale"), ("listed_lengths", "v,t,lengths_list,scale"), ("zeros_are_padding", "v,t_zero,scale"),
        ("of_a_run", "v,t,mask,scale,value:0"))),
]


@pytest.mark.parametrize("name, written", [
    x if k % 2 == 0 or hasattr(x, "marks") else pytest.param(*x, marks=pytest.mark.slow) for k, x in enumerate(CALLED)])
def test_it_is_called_as_it_is_and_gives_the_papers_numbers(worker, name, written):
    w = worker(name)
    convention = infer(w)[0]
    assert convention.written == written
    assert next(i.sure for i in convention.items if i.what == "returns") == "certain"
    probe = PROBES["padded"]
    answer = Caller(w, convention)(probe)
    loss, _, back = fine_grained_loss(probe.v, probe.t, probe.mask, np.asarray(probe.theta))
    assert answer.losses["fine"] == pytest.approx(float(loss), rel=1e-6)
    for leaf, want in zip(("v", "t"), back()):            # in the layout of the probe, whatever theirs is
        np.testing.assert_allclose(answer.grads["fine"][leaf], want, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("body, verdict", [
    ("z.masked_fill(~m[:, None], -torch.inf).log_softmax(-1).diagonal(dim1=1, dim2=2)", "unexplained"),
    ("z.abs().amax(-1)", "asks")])
def test_a_call_that_neither_names_nor_numbers_support_is_a_question(tmp_path, body, verdict):
    """One that numbers support is judged, whatever its arguments are called."""
    (tmp_path / "generic.py").write_text(f"""
import torch
import torch.nn.functional as F

def loss(a, b, m, g):
    w = (b @ a.mT).tanh().sort(-1).values.softmax(-1)
    z = g * F.normalize(w @ a, dim=-1) @ F.normalize(b, dim=-1).mT
    return (torch.where(m, -{body}, 0.0).sum(1) / m.sum(1)).mean()
""")
    target = f"{tmp_path}/generic.py:loss"
    if verdict == "asks":
        with pytest.raises(Unclear, match=r"no name of .* says which arguments are patches and tokens.*--call v,t,mask,scale"):
            parity.check(target)
    else:
        assert parity.check(target).verdict == verdict


def test_what_was_ruled_out_is_certain(worker):
    for name, what in (("log_tau_exp", "log_tau"), ("by_length", "txt_len"), ("by_length", "inv_temp")):
        found = next(i for i in infer(worker(name))[0].items if i.what == what)
        assert found.sure == "certain", found


def test_a_layout_that_runs_but_is_no_loss_gives_way_to_one_that_is(worker):
    """The usual layout runs here too: three tokens of a batch look for ten patches of another."""
    convention = infer(worker("loop_without_mask"))[0]
    assert convention.written == "v_pbd,t_lbd,scale"
    assert next(i for i in convention.items if i.what == "image").sure == "likely"


@pytest.mark.parametrize("name, words", [
    ("five_axes", "expected 5, got 3.*--call"), ("loops", "--tokens t or --tokens t_list"),
    ("without_first", "--patches v_cls .*--patches v "), ("a_log", "--scale scale .*--scale theta"),
    ("checked", "AssertionError.*--call"),
])
def test_a_call_of_ours_that_may_be_wrong_is_a_question(worker, name, words):
    with pytest.raises(Unclear, match=words):
        infer(worker(name))


def test_a_sample_alone_is_said_to_be_called_for_each(worker):
    convention = infer(worker("one_sample"))[0]
    assert convention.single and "one sample a call" in str(convention)
    assert any("mean over the batch is taken by the checker" in i.value for i in convention.items)


def test_a_temperature_is_no_array_of_tokens(worker):
    with pytest.raises(Unclear, match="which arguments are patches and tokens"):
        infer(worker("not_a_layout"))


def test_what_code_takes_apart_is_found_and_put_together_again():
    def loss(batch, pair, *rest, **loose):
        image, (x, y) = batch["image"], pair
        v, t = (batch[k] for k in ("v", "t"))
        return [(a, n, x, y, v, t, image.grid, rest[0], rest[1], loose["w"]) for a, n in batch.get("items")]

    assert keys_of(loss) == {
        "batch": ["batch['v']", "batch['t']", "batch['items'][*][0] (a)", "batch['items'][*][1] (n)", "batch['image'].grid"],
        "pair": ["pair[0] (x)", "pair[1] (y)"], "rest": ["*rest[0]", "*rest[1]"], "loose": ["w"]}
    assert keys_of(lambda v, t: v[0] + t[1:]) == {}
    call = grouped(lambda batch, *rest, w: (batch, rest, w), ["batch['x'].n"])
    items = {"batch['a'][*][0] (a)": [5, 6], "batch['a'][*][1] (n)": "xy"}
    batch, rest, w = call(**items, **{"batch['x'].n": 7, "*rest[0]": 1, "w": 3})
    assert batch["a"] == [(5, "x"), (6, "y")] and batch["x"].n == 7 and rest == (1,) and w == 3


def test_a_keyword_answers_the_question(worker):
    assert infer(worker("loops"), {"tokens": "t"})[0].written == "v,t,scale"
    assert infer(worker("loops"), {"tokens": "t_list"})[0].written == "v,t_list,scale"
    assert infer(worker("without_first"), {"patches": "v"})[0].written == "v,t,mask,scale"
    assert infer(worker("with_class_token"))[0].written == "v_cls,t,mask,scale"
    assert infer(worker("a_log"), {"scale": "theta"})[0].written == "v,t,mask,theta"


def test_a_backward_method_gives_the_gradients(worker):
    w = worker("Pair")
    probe = PROBES["padded"]
    answer = Caller(w, infer(w, {"framework": "numpy"})[0])(probe)
    loss, _, back = fine_grained_loss(probe.v, probe.t, probe.mask, np.asarray(probe.theta))
    assert answer.losses["fine"] == pytest.approx(float(loss), rel=1e-9)
    for leaf, want in zip(("v", "t", "theta"), back()):
        np.testing.assert_allclose(answer.grads["fine"][leaf], want, rtol=1e-6, atol=1e-9)


def test_an_exponential_that_a_name_and_a_start_say_is_missing(worker):
    convention = infer(worker("ExpForgotten"))[0]
    assert convention.attributes == {"log_scale": "theta"} and "an exp() is missing" in " ".join(convention.notes)


def test_an_error_of_shapes_that_no_layout_avoids_says_so(worker):
    with pytest.raises(CannotRun) as stop:
        infer(worker("width_first"))
    batch, note = stop.value.notes
    assert "B 3, P 10, L 6, D 16" in batch and "none runs" in note and "--call" in note
    with pytest.raises(CannotRun) as stop:
        infer(worker("a_typo"))
    assert stop.value.notes[0] == batch and "each raises this" in stop.value.notes[1]
    assert stop.value.error["type"] == "NameError"


def test_two_methods_are_a_question(folder):
    with pytest.raises(Unclear, match=r"takes.py:TwoMethods.align\n.*takes.py:TwoMethods.contrast"):
        parity.check(f"{folder}/takes.py:TwoMethods")


INSTANCE = '''
import sys
sys.path.insert(0, {folder!r})
from torch import nn
from takes import fine

class SparcCriterion(nn.Module):
    def __init__(self, temperature):
        super().__init__()
        self.tau = temperature
    def forward(self, patches, tokens, mask):
        return fine(patches, tokens, mask, 1 / self.tau)

class Helper:
    def __init__(self, temperature):
        self.temperature = temperature
    def compute_it(self, patches, tokens, mask):
        return fine(patches, tokens, mask, 1 / self.temperature)

{made}
'''


@pytest.mark.parametrize("made, attribute", [
    ("criterion = SparcCriterion(0.1)\ndel Helper", "tau"), ("thing = Helper(0.1)\ndel SparcCriterion", "temperature"),
    ("import functools\nloss = functools.partial(fine, scale=14.0)\ndel Helper, SparcCriterion", None),
])
def test_what_a_module_made_is_taken(folder, tmp_path, made, attribute):
    (tmp_path / "made.py").write_text(INSTANCE.format(folder=str(folder), made=made))
    with Worker(target_of(str(tmp_path / "made.py"))) as w:
        convention = infer(w)[0]
        assert convention.attributes == ({attribute: "tau"} if attribute else {})
        probe = PROBES["padded"]
        loss = fine_grained_loss(probe.v, probe.t, probe.mask, np.asarray(probe.theta))[0]
        assert Caller(w, convention)(probe).losses["fine"] == pytest.approx(float(loss), rel=1e-9)


def test_attributes_of_arrays_are_no_keys():
    pytest.importorskip("jax")

    def loss(v, t, batch, sizes):
        _, p, _ = v.shape
        return v.at[0].set(t.mT[p]), batch["mask"], batch.words, sizes[0]

    assert keys_of(loss) == {"batch": ["batch['mask']", "batch.words"]}


def test_what_a_function_makes_is_taken(folder, tmp_path):
    (tmp_path / "makes.py").write_text(f"import sys\nsys.path.insert(0, {str(folder)!r})\nimport takes\n\n"
        "def build(sigma=None):\n    def criterion(v, t, mask, scale):\n        return takes.fine(v, t, mask, scale)\n"
        "    return criterion\n")
    with Worker(target_of(str(tmp_path / "makes.py"))) as w:
        assert infer(w)[0].written == "v,t,mask,scale"


def test_an_object_with_one_method_is_taken_and_one_without_is_not():
    class Loss:
        def compute(self, v, t, mask, scale):
            return fine_grained_loss(v, t, mask, np.log(scale))[0]

    with Worker(target_of(Loss())) as w:
        assert infer(w)[0].written == "v,t,mask,scale"
    with pytest.raises(ValueError, match="expected something to call"):
        target_of(3)


def test_the_question_is_exit_status_2(folder):
    done = subprocess.run([sys.executable, "-m", "parity", "check", f"{folder}/takes.py:five_axes", "--html", "none"],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "--call" in done.stderr
