"""What is measured: operations counted on a real update, figures of the alignment from their definition, norms."""

import numpy as np
import pytest
import torch
from test_model import TOY
from torch.utils.flop_counter import FlopCounterMode

from parity.trainer import meters, optim
from parity.trainer.loss import sparc_loss
from parity.trainer.model import SPARC, init_weights
from sparc_ref.run.train import zeroed


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(2)
    images = torch.randn(5, 3, TOY.image_size, TOY.image_size, generator=rng)
    tokens = torch.randint(0, TOY.vocab_size, (5, TOY.max_tokens), generator=rng)
    return images, tokens, torch.ones(5, TOY.max_tokens, dtype=torch.bool)


def test_operations_are_those_of_an_update(batch):
    """Every product of a whole update, of which the global loss has two in the form that ranks use."""
    model = init_weights(SPARC(TOY, attention="plain"), 0)
    with FlopCounterMode(display=False) as counter:
        optim.backward(model, batch, form="gathered")
    assert meters.operations(TOY, 5, 1) == counter.get_total_flops()
    assert meters.operations(TOY, 10, 2) > meters.operations(TOY, 5, 1)  # more negatives for as many samples


def test_figures_are_what_they_say(batch):
    images, tokens, mask = batch
    mask = torch.arange(TOY.max_tokens) < torch.tensor([TOY.max_tokens, 1, 2, 3, 4])[:, None]
    model = init_weights(SPARC(TOY), 0)
    stages = {name: x.detach() for name, x in
              sparc_loss(model(images, tokens, mask), mask, model.theta, model.theta_fine, TOY)[1].items()}
    found = meters.alignment_figures(stages, mask)
    assert found["zeroed"] == pytest.approx(zeroed(stages["sparse"].numpy(), mask.numpy()), abs=1e-12)
    weights = stages["weights"].double().numpy()[mask.numpy()]
    entropy = [-sum(a * np.log(a) for a in row if a > 0) for row in weights]
    assert found["entropy"] == pytest.approx(np.mean(entropy), rel=1e-5)
    assert meters.alignment_figures({}, mask) == {}


def test_norms(batch):
    model = init_weights(SPARC(TOY), 0)
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    assert meters.parameters_norm(model) == pytest.approx(float(flat.norm()), rel=1e-6)
    before = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        model.g_v.bias += 3
    assert meters.difference_norm(model, before) == pytest.approx(3 * TOY.embed_dim**0.5, rel=1e-5)
    assert meters.peak_operations(torch.device("cpu"), "float32") is None
