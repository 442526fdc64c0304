import numpy as np
from numpy.linalg import norm


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def evaluate_local_loss(text, image, n_tokens, tau=0.07):
    """Validation metric only (no gradients). text (B,L,D), image (B,P,D), n_tokens list of ints."""
    losses = []
    for words, regions, n in zip(text, image, n_tokens):
        words = words[:n]
        if n < 1:
            losses.append(0.0)
            continue
        groups = []
        for word in words:
            score = regions @ word
            spread = np.ptp(score)
            score = (score - score.min()) / spread if spread > 0 else np.ones_like(score)
            score[score < 1 / len(regions)] = 0
            groups.append(np.average(regions, axis=0, weights=score))
        groups = np.stack(groups)
        cosine = (groups @ words.T) / np.outer(norm(groups, axis=1), norm(words, axis=1))
        a = log_softmax(cosine / tau)
        b = log_softmax(cosine.T / tau)
        losses.append(-0.5 * (np.trace(a) + np.trace(b)) / n)
    return float(np.mean(losses))
