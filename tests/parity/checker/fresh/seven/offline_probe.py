"""Scores saved embeddings with the training loss (no gradients), captions stored end to end."""
import numpy as np
from numpy.linalg import norm


def _xent(logits):
    top = logits.max(axis=1)
    lse = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return (lse - logits.diagonal()).mean()


def _group(words, patches):
    sim = words @ patches.T
    sim = sim - sim.min(axis=1, keepdims=True)
    sim = sim / sim.max(axis=1, keepdims=True)
    sim[sim < 1.0 / patches.shape[0]] = 0.0
    return (sim / sim.sum(axis=1, keepdims=True)) @ patches


def probe_loss(packed_words, offsets, patches, temperature=0.07):
    """packed_words (sum of lengths, D), offsets (B+1,), patches (B, P, D)"""
    losses = []
    for b, (start, stop) in enumerate(zip(offsets[:-1], offsets[1:])):
        words = packed_words[start:stop]
        grouped = _group(words, patches[b])
        words = words / norm(words, axis=1, keepdims=True)
        grouped = grouped / norm(grouped, axis=1, keepdims=True)
        logits = grouped @ words.T / temperature
        losses.append(0.5 * (_xent(logits) + _xent(logits.T)))
    return float(np.mean(losses))
