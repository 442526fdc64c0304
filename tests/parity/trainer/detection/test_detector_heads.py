"""Heads, losses and matching of the detector, each against what is known of it by hand, by brute force, by differences."""

import itertools
import math

import numpy as np
import pytest
import torch

from parity.trainer.detection import heads, losses, matching
from parity.trainer.model import SPARC, init_weights
from sparc_ref.evaluate import detection as boxes
from sparc_ref.model import PRESETS

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def detector():
    return heads.Detector(init_weights(SPARC(PRESETS["tiny"]), 0)).double()


def some(detector, side=None, queries=5, seed=0):
    rng = torch.Generator().manual_seed(seed)
    side = side or detector.config.image_size
    tokens = torch.randint(0, detector.config.vocab_size, (2, queries, 4), generator=rng)
    return (torch.rand(2, 3, side, side, generator=rng).double() * 2 - 1, tokens, torch.ones(tokens.shape, dtype=torch.bool),
            torch.ones(2, queries, dtype=torch.bool))


def test_a_new_box_head_returns_the_prior(detector):
    side = detector.config.image_size
    for size in (side, side + 2 * detector.config.patch_size):
        grid = size // detector.config.patch_size
        _, box = detector(*some(detector, size))
        assert torch.equal(box, torch.sigmoid(heads.box_bias(grid, grid).double()).expand_as(box))
    prior = torch.sigmoid(heads.box_bias(3, 4).double())
    for i, j in itertools.product(range(3), range(4)):   # the lower-right corner of row i, column j; the patch's size
        known = torch.tensor([(j + 1) / 4, (i + 1) / 3, 1 / 4, 1 / 3])
        assert torch.allclose(prior[4 * i + j], known.double(), atol=2e-4)
        logit = torch.log(known + 1e-4) - torch.log1p(-known + 1e-4)
        assert torch.allclose(heads.box_bias(3, 4)[4 * i + j], logit, atol=1e-4)
    assert not torch.allclose(prior[0, :2], torch.tensor([1 / 8, 1 / 6]).double(), atol=0.1)  # the middle it is not


@torch.no_grad()
def test_class_logits_are_the_formula(detector):
    torch.manual_seed(0)
    head = detector.class_head
    x, q = torch.randn(2, 7, detector.config.vision_width).double(), torch.randn(2, 3, detector.config.embed_dim).double()
    real = torch.tensor([[True, True, False], [True, False, True]])
    got = head(x, q, real)
    for b, n, k in itertools.product(range(2), range(7), range(3)):
        e = head.embedding.weight @ x[b, n] + head.embedding.bias
        cosine = float(e @ q[b, k]) / (float(e.norm()) + 1e-6) / (float(q[b, k].norm()) + 1e-6)
        shift, scale = float(head.shift(x[b, n])), float(head.scale(x[b, n]))
        scale = scale + 1 if scale > 0 else math.exp(scale)
        assert got[b, n, k].item() == pytest.approx((cosine + shift) * scale if real[b, k] else -1e6, rel=1e-9)


def test_a_padding_query_costs_nothing_and_changes_nothing(detector):
    images, tokens, mask, real = some(detector)
    logits, _ = detector(images, tokens, mask, real)
    padded = torch.cat([tokens, torch.zeros_like(tokens[:, :1])], 1)
    mask = torch.cat([mask, torch.zeros_like(mask[:, :1])], 1)
    more, _ = detector(images, padded, mask, torch.cat([real, torch.zeros_like(real[:, :1])], 1))
    assert torch.allclose(more[..., :-1], logits, atol=1e-12) and (more[..., -1] == -1e6).all()
    assert losses.focal_loss(more[..., -1], torch.zeros_like(more[..., -1])).sum() == 0


def test_focal_loss_by_hand_and_by_differences():
    z = torch.tensor([-2.0, -0.3, 0.0, 1.7], dtype=torch.float64)
    for y in (0.0, 1.0):
        p = 1 / (1 + np.exp(-z.numpy()))
        truth = p if y else 1 - p
        by_hand = (0.3 if y else 0.7) * (1 - truth) ** 2 * -np.log(truth)
        assert np.allclose(losses.focal_loss(z, torch.full_like(z, y)), by_hand, rtol=1e-12)
        assert torch.autograd.gradcheck(lambda z, y=y: losses.focal_loss(z, torch.full_like(z, y)), z.clone().requires_grad_())
    assert torch.isfinite(losses.focal_loss(torch.tensor([-1e6, 1e4]), torch.tensor([0.0, 0.0]))).all()


def test_giou_is_that_of_the_arrays_and_one_of_itself():
    rng = np.random.default_rng(0)
    a, b = (np.concatenate([rng.random((9, 2)), rng.uniform(.05, .9, (9, 2))], 1) for _ in range(2))
    got = losses.giou(losses.corners(torch.from_numpy(a))[:, None], losses.corners(torch.from_numpy(b))[None])
    def files(x):
        return np.concatenate([x[:, :2] - x[:, 2:] / 2, x[:, 2:]], 1)                         # centres to x, y, w, h
    assert np.allclose(got, boxes.giou(files(a), files(b)), atol=1e-4)                      # but for the 1e-6 of the hull
    itself = losses.corners(torch.from_numpy(a))
    assert torch.allclose(losses.giou(itself, itself), torch.ones(9).double(), atol=1e-12)
    x = torch.from_numpy(a).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: losses.giou(losses.corners(x), losses.corners(torch.from_numpy(b))), x)


def drawn(seed, N=7, M=3, Q=4):
    rng = torch.Generator().manual_seed(seed)
    def rand(*shape):
        return torch.rand(*shape, generator=rng, dtype=torch.float64)
    labels = rand(M, Q) < .5
    labels[:, 0] |= ~labels.any(1)
    return rand(N, Q) * 6 - 3, rand(N, 4) * .5 + .2, labels, rand(M, 4) * .5 + .2


def test_cost_is_the_formula():
    logits, box, labels, truth = drawn(0)
    cost = matching.match_cost(logits, box, labels, truth)
    for n, m in itertools.product(range(7), range(3)):
        label = 0.0
        for z in logits[n][labels[m]].tolist():
            p = 1 / (1 + math.exp(-z))
            label += 0.3 * (1 - p) ** 2 * -math.log(p) - 0.7 * p**2 * -math.log(1 - p)
        l1 = (box[n] - truth[m]).abs().sum()              # of centres and sizes
        general = losses.giou(losses.corners(box[n]), losses.corners(truth[m]))
        assert cost[n, m].item() == pytest.approx(float(label + l1 - general), rel=1e-9)


@pytest.mark.parametrize("M", range(1, 7))
def test_match_is_the_best_of_all(M):
    rng = np.random.default_rng(M)
    cost = rng.normal(size=(7, M))
    patch, target = matching.match(torch.from_numpy(cost))
    best = min(sum(cost[p, m] for m, p in enumerate(chosen)) for chosen in itertools.permutations(range(7), M))
    assert cost[patch, target].sum() == pytest.approx(best, abs=1e-12) and sorted(target.tolist()) == list(range(M))
    with pytest.raises(ValueError, match="not finite"):
        matching.match(torch.full((2, 2), math.nan))


def test_more_boxes_than_patches():
    patch, target = matching.match(torch.rand(3, 5))
    assert sorted(patch.tolist()) == [0, 1, 2] and len(set(target.tolist())) == 3


def test_loss_of_a_picture_by_hand():
    logits, box, labels, truth = drawn(1)
    patch, target = matching.match(matching.match_cost(logits, box, labels, truth))
    got = losses.picture_loss(logits, box, labels, truth, patch, target)
    asked = np.zeros((7, 4))
    for p, m in zip(patch.tolist(), target.tolist()):
        asked[p] = labels[m]
    p = 1 / (1 + np.exp(-logits.numpy()))
    focal = asked * .3 * (1 - p) ** 2 * -np.log(p) + (1 - asked) * .7 * p**2 * -np.log(1 - p)
    assert got["loss_label"].item() == pytest.approx(focal.sum() / labels.sum().item())
    a, b = losses.corners(box[patch]), losses.corners(truth[target])
    assert got["loss_l1"].item() == pytest.approx((a - b).abs().sum().item() / 3)          # of corners
    assert got["loss_giou"].item() == pytest.approx((1 - losses.giou(a, b)).sum().item() / 3)
    assert got["loss"].item() == pytest.approx(sum(got[f"loss_{k}"].item() for k in ("label", "l1", "giou")))


def test_padding_targets_change_nothing():
    logits, box, labels, truth = drawn(2)
    cost = matching.match_cost(logits, box, labels, truth)
    known = losses.picture_loss(logits, box, labels, truth, *matching.match(cost))
    labels = torch.cat([labels, torch.zeros(4, 4, dtype=torch.bool)])                      # one for each patch that is left
    truth = torch.cat([truth, torch.full((4, 4), .5).double()])
    patch, target = matching.match(torch.cat([cost, torch.zeros(7, 4)], 1))
    padded = losses.picture_loss(logits, box, labels, truth, patch, target)
    assert len(patch) == 7 and all(padded[k].item() == pytest.approx(known[k].item()) for k in known)
    none = losses.picture_loss(logits, box, labels[3:], truth[3:], *matching.match(torch.zeros(7, 4)))
    assert none["loss_l1"] == 0 and none["loss_giou"] == 0 and none["loss_label"] > 0


def test_a_picture_without_boxes_asks_for_no_everywhere():
    logits, box, labels, truth = drawn(3)
    nothing = labels[:0], truth[:0]
    got = losses.picture_loss(logits, box, *nothing, *matching.match(matching.match_cost(logits, box, *nothing)))
    assert got["loss_l1"] == 0 and got["loss_giou"] == 0
    assert got["loss"].item() == pytest.approx(losses.focal_loss(logits, torch.zeros_like(logits)).sum().item())


def test_droplayer_leaves_out_branches_by_example_while_training():
    model = init_weights(SPARC(PRESETS["tiny"]), 0)
    images = torch.rand(64, 3, model.config.image_size, model.config.image_size)
    whole = model.vision(images)
    heads.add_droplayer(model.vision, 0.9)
    assert torch.equal(model.vision.eval()(images), whole)
    same = (model.vision.train()(images) == whole).flatten(1).all(1)
    assert same.sum() < 32 and not model.vision.blocks[0].attn._forward_hooks              # the first block always stays
    assert model.vision.blocks[-1].attn._forward_hooks
