import re

import numpy as np
import pytest

from parity.checker.diagnosis.deviations import CONDITIONS, DEVIATIONS, STAGES, Found, words
from parity.checker.probes import HELD_OUT, MORE, PROBES, knife_probe, margin, threshold_probe

SURVEY = """
similarity.cosine similarity.detached similarity.patches_group similarity.scaled similarity.tokens_normalised
minmax.nan_on_flat minmax.epsilon minmax.missing minmax.nan_from_padding threshold.absent threshold.constant threshold.strict
weights.detached weights.softmax weights.softmax_minmax weights.raw weights.mean grouping.normalised_patches
norm.missing norm.missing_c norm.missing_t logits.padding_not_masked logits.padding_filled_zero logits.batch_negatives
logits.nan_all_masked_rows logits.temperature_constant logits.directions_swapped loss.one_direction loss.factor
reduction.token reduction.mean_all reduction.masked_over_all global.pools_normalised global.pools_padding global.uses_cls
global.temperature_constant global.one_direction edge.zero_padding edge.nan_gradient edge.all_padding edge.padding_leak
edge.no_gradient edge.mutates_inputs edge.not_deterministic edge.order_dependent edge.batch_split edge.low_precision
"""                                                       # every line of the survey, and its neighbours


def test_table_has_every_line_of_the_survey():
    assert set(SURVEY.split()) <= DEVIATIONS.keys()


@pytest.mark.parametrize("d", DEVIATIONS.values(), ids=lambda d: d.id)
def test_entry_is_complete(d):
    assert re.fullmatch(r"[a-z]+(\.[a-z_]+){1,2}", d.id) and d.stage in STAGES
    assert set(d.hidden_by) <= set(CONDITIONS)
    clauses = [words(Found(d.id)), words(Found(d.id, 0.3)), words(Found(d.id, "vt", "in some way"))]
    for text in (d.title, d.fix, d.training, *clauses):
        assert text.strip() and "{" not in text
    assert not any("None" in text for text in clauses)
    clause = words(Found(d.id, 0.3))
    assert clause[0].islower() and clause[-1] != "."      # a clause after "except that"
    assert all(len(line) < 100 for line in d.fix.splitlines()) and len(d.fix.splitlines()) <= 3
    assert d.training[0].isupper() and d.training[-1] == "."
    assert d.harmless == d.training.startswith("None") or d.edge


def test_words_carry_their_numbers():
    assert words(Found("threshold.constant", 0.3), patches=37) == "sigma is 0.3 instead of 1/P (0.027 for 37 patches)"
    assert "tau = 0.07" in words(Found("logits.temperature_constant", 0.07))
    assert "1e-08" in words(Found("minmax.epsilon", 1e-8)) and "epsilon of" not in words(Found("minmax.epsilon"))
    assert "tokens pick their group" in words(Found("loss.one_direction", "tv"))
    assert "pictures pick captions" in words(Found("global.one_direction", "vt"))
    assert words(Found("logits.padding_not_masked", way="when tokens pick groups")).endswith("(when tokens pick groups)")
    assert str(Found("threshold.constant", 0.3)) == "threshold.constant(0.3)" and str(Found("norm.missing")) == "norm.missing"


@pytest.mark.parametrize("probe", [*PROBES.values(), *HELD_OUT.values()], ids=lambda p: p.name)
def test_probe_keeps_away_from_knife_edges(probe):
    assert margin(probe) > 1e-4
    assert probe.v.dtype == probe.t.dtype == np.float64 and probe.mask.dtype == bool and probe.shows
    assert np.isfinite(probe.v).all() and np.isfinite(probe.t).all()
    batch, columns, patches = *probe.mask.shape, probe.v.shape[1]
    assert probe.v.shape[::2] == probe.t.shape[::2] and probe.v_bar.shape == probe.t_bar.shape == (batch, probe.v.shape[2])
    assert len({batch, columns, patches}) == len({batch, columns, probe.v.shape[2]}) == 3  # sizes tell axes apart
    assert patches != probe.v.shape[2] or patches == MORE["patches"]  # a square, where two different squares are needed


def test_every_condition_is_met_alone_and_broken():
    """For each pair of conditions some probes fulfil just these, and break whatever they do not imply."""
    implied = {"no padding": {"equal lengths", "no caption of padding alone", "no zero embeddings at padding"},
               "B = 1": {"equal lengths", "no caption of padding alone"}, "no flat rows": {"no zero embeddings at padding"}}
    for one in CONDITIONS:
        for other in CONDITIONS:
            wanted = {one, other}
            chosen = [p for p in PROBES.values() if wanted <= p.holds]
            assert len(chosen) >= 2, wanted
            shared = set.intersection(*(set(p.holds) for p in chosen)) - wanted
            allowed = set().union(*(implied.get(c, set()) for c in wanted))
            if "equal lengths" in wanted:                 # captions of padding alone among others of their length
                allowed |= {"no caption of padding alone"}
            assert shared <= allowed, (wanted, shared - allowed)


def test_flat_probes_have_rows_that_are_flat_exactly():
    for probe in PROBES.values():
        s = probe.t @ np.swapaxes(probe.v, 1, 2)
        flat = (np.ptp(s, -1) == 0) & probe.mask
        assert flat.any() == probe.flat


def test_threshold_probe_has_the_similarities_that_were_asked_for():
    wanted = np.linspace(0.05, 0.95, 14)
    probe = threshold_probe("some", wanted)
    s = probe.t[0] @ probe.v[0].T
    np.testing.assert_array_equal(s[0], [1, 0, *wanted])
    assert s[1, 1] == 1 and np.abs(np.delete(s[1], 1)).max() < 3e-7
    np.testing.assert_allclose(np.linalg.norm(probe.v[0], axis=-1), 1, atol=1e-15)
    knife = knife_probe(0.25)
    assert (np.linalg.norm(knife.v[0], axis=-1) == 1).all() and (knife.t[0] @ knife.v[0].T)[0, 2] == 0.25
