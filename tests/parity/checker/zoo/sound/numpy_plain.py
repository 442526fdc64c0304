"""NumPy, value only: an evaluation script."""

import numpy as np

EXPECT = {
    "target": "evaluate",
    "verdict": "listing1",
    "framework": "numpy",
    "call": ["patches=v", "tokens=t", "lengths=lengths", "temperature=tau"],
}


def log_softmax(z):
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def evaluate(patches, tokens, lengths, temperature):
    total, count = 0.0, 0
    for image, caption, n in zip(patches, tokens, lengths):
        caption = caption[:n]
        if n == 0:
            continue
        sim = caption @ image.T
        group = []
        for row in sim:
            span = np.ptp(row)
            w = (row - row.min()) / span if span > 0 else np.ones_like(row)
            w = np.where(w >= 1 / len(image), w, 0)
            group.append(np.average(image, axis=0, weights=w))
        group = np.stack(group)
        group = group / np.linalg.norm(group, axis=1, keepdims=True)
        words = caption / np.linalg.norm(caption, axis=1, keepdims=True)
        z = group @ words.T / temperature
        total -= np.trace(log_softmax(z)) + np.trace(log_softmax(z.T))
        count += n
    return total / (2 * max(count, 1))
