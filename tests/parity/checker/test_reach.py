"""Losses that are the paper's on small batches and something else at the sizes people use: none may be called equal."""

import re

import pytest
import zoo_server

PAPER = '''
import math
import torch
import torch.nn.functional as F

HELPERS = None


def local_loss(v, t, mask, logit_scale):
    # START
    s = t @ v.mT
    # SIMILARITY
    low, high = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = high == low
    s = torch.where(flat, 1.0, (s - low) / torch.where(flat, 1.0, high - low))
    sigma = 1 / v.shape[1]
    # SIGMA
    s = torch.where(s < sigma, 0.0, s)
    # WEIGHTS
    c = F.normalize(s / s.sum(-1, keepdim=True) @ v, dim=-1)
    z = logit_scale * c @ F.normalize(t, dim=-1).mT
    # LOGITS
    ce = -sum(y.masked_fill(~mask[:, None], -torch.inf).log_softmax(-1).diagonal(dim1=1, dim2=2) for y in (z, z.mT))
    n = mask.sum(1).clamp_min(1)
    # COUNT
    each = torch.where(mask, ce, 0.0).sum(1) / n
    # EACH
    return each.mean() / 2
'''
CLIP = """
class Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g.clamp(-0.5, 0.5)
"""
IGNORES = """
class Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g / g.abs().clamp_min(1.0)
"""
# name -> where, lines, which size, the last good one (None: whatever is said), a bound on how far that may be
CASES = {
    "tokens_dropped": ("START", "t, mask = t[:, :32], mask[:, :32]", "token", 32),
    "patches_dropped": ("START", "v = v[:, :32]", "patch", 32),
    "samples_dropped": ("EACH", "each = each[:16]", "sample", 16),
    "scale_clamped": ("START", "logit_scale = logit_scale.clamp(max=20.0)", "1/tau", 20),
    "similarity_clamped": ("SIMILARITY", "s = s.clamp(-50, 50)", "similarities", 50),
    "similarity_clamped_late": ("SIMILARITY", "s = s.clamp(-1000, 1000)", "similarities", 1000),
    "gradient_clamped": ("START", "v = Clip.apply(v)", "gradient", 0.5),
    "sigma_floored": ("SIGMA", "sigma = max(sigma, 0.02)", "patch", 50),
    "sigma_capped": ("SIGMA", "sigma = min(sigma, 0.1)", "patches", 10),
    "patches_dropped_12": ("START", "v = v[:, :12]", "patch", 12),
    "upstream_ignored": ("EACH", "each = Whole.apply(each)", "gradient", None),
    "chunks_drop_the_rest": ("EACH", "each = each[: len(each) // 8 * 8] if len(each) > 8 else each", "sample", 8),
    "minimum_of_64": ("SIMILARITY", "s = torch.cat([s[..., :64], s[..., 64:].maximum(s[..., :64].amin(-1, keepdim=True))], -1)",
                      "patch", 64),
    "top_64": ("WEIGHTS", "s = torch.where(s >= s.topk(min(64, s.shape[-1]), -1).values[..., -1:], s, 0.0)", "patch", 65),
    "width_scales": ("LOGITS", "z = z * (16 / v.shape[-1]) ** 0.5", "dimensions", 16),
    "half_the_width": ("SIMILARITY", "s = t[..., :256] @ v[..., :256].mT", "dimensions", 256),
    "logits_clamped": ("LOGITS", "z = z.clamp(-40, 40)", "1/tau", 40),
    "count_clamped": ("COUNT", "n = n.clamp(max=24)", "token", 24),
    "half_when_large": ("SIMILARITY", "s = s.half().double() if s.numel() > 4096 else s", None, None),
    "half_long_by_many": ("SIMILARITY", "s = s.half().double() if s.shape[1] * s.shape[2] > 1024 else s", None, None),
    "sigma_of_a_square": ("SIGMA", "sigma = 1 / max(9, round(v.shape[1] ** 0.5) ** 2) if v.shape[1] > 12 else sigma", "patch",
                          12),
    "cold_scale": ("START", "logit_scale = logit_scale.clamp(min=2.0)", "1/tau", 2),
    "float32_alone": ("SIMILARITY", "s = s * (1.02 if s.dtype == torch.float32 else 1.0) - 1.0 * (s.dtype == torch.float32)"
                      " * v.norm(dim=-1)[:, None]", "float64", None),
    "far_negatives": ("LOGITS", "k = torch.arange(z.shape[1]); z = z.masked_fill((k[:, None] - k).abs() > 16, -1e9)", "token",
                      17),
}  # fmt: skip


def source(name):
    where, lines, *_ = CASES[name]
    return PAPER.replace("HELPERS = None", CLIP + IGNORES).replace(f"# {where}\n", f"{lines}\n")


@pytest.fixture(scope="module")
def ask():
    with zoo_server.Server() as ask:
        yield ask


def written(folder, name, text):
    path = folder / f"{name}.py"
    head = 'EXPECT = {"target": "local_loss", "verdict": "eq6", "call": ["v", "t", "mask", "scale"]}\n'
    path.write_text(head + text)
    return path


def test_the_paper_itself_reaches_every_size(ask, tmp_path):
    report = ask(written(tmp_path, "paper", PAPER))
    assert report["verdict"] == "eq6" and report["exit_code"] == 0, report["headline"]
    tried = report["tried"]
    wanted = (("B", 1, 64), ("L", 1, 55), ("P", 2, 256), ("D", 16, 512), ("inverse", 1, 100), ("upstream", 1, 1e3))
    for key, low, high in wanted:
        assert tried[key][0] <= low and tried[key][1] >= high, (key, tried[key])
    assert tried["similarity"][1] > 3000 and tried["dtypes"] == ["float64", "float32"]


SQUARE = "side = math.isqrt(v.shape[1])\n    assert side * side == v.shape[1]\n    "


@pytest.mark.parametrize("more, verdict, words", [
    ("", "eq6", "equals eq. 6"),
    pytest.param("v = v[:, :49]", "conditional", "at most 49 patches", marks=pytest.mark.slow),
    pytest.param("logit_scale = logit_scale * (1 + 0.1 * (v.shape[1] >= 100))", "conditional", "at most 81 patches",
                 marks=pytest.mark.slow),
])
def test_squares_of_patches_are_tried_where_nothing_else_runs(more, verdict, words, ask, tmp_path):
    report = ask(written(tmp_path, "squares", PAPER.replace("# START\n", f"{SQUARE}{more}\n")))
    assert report["verdict"] == verdict and words in report["headline"], report["headline"]
    assert "square numbers alone" in report["headline"] and report["tried"]["P"] == [4, 576]


QUICK = ("patches_dropped_12", "similarity_clamped")


@pytest.mark.parametrize("name", [pytest.param(x, marks=() if x in QUICK else pytest.mark.slow) for x in CASES])
def test_none_is_called_equal_and_the_size_is_named(name, ask, tmp_path):
    report = ask(written(tmp_path, name, source(name)))
    _, _, word, last = CASES[name]
    assert report["verdict"] == "conditional" and report["exit_code"] == 1, report["headline"]
    if word is None:                                      # a product decides: no size alone is its limit
        assert "other sizes do not agree" in report["headline"] or " (with " in report["headline"], report["headline"]
        assert "From 171 patches on it differs:" not in report["headline"], report["headline"]
        return
    (condition,) = report["conditions"]
    assert word in condition, report["headline"]
    if last is not None:
        said = float(re.search(r"(?:most|least)(?: about)? ([0-9.]+)", condition).group(1))
        slack = 0.0 if word in ("patch", "token", "sample", "dimensions", "patches") else 0.03
        assert abs(said / last - 1) <= slack, condition
