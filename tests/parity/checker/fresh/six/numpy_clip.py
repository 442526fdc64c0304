import numpy as np


def l2_normalize(x, axis=1):
    return x / np.sqrt(np.sum(np.square(x), axis=axis, keepdims=True))


def cross_entropy(logits, labels, axis):
    m = np.max(logits, axis=axis, keepdims=True)
    logp = logits - m - np.log(np.sum(np.exp(logits - m), axis=axis, keepdims=True))
    n = len(labels)
    picked = logp[np.arange(n), labels] if axis == 1 else logp[labels, np.arange(n)]
    return -np.mean(picked)


def clip_loss(I_f, T_f, t):
    """figure 3 of the CLIP paper in numpy

    I_f, T_f: aligned pooled embeddings [n, d_e];  t: learned log temperature
    """
    # joint multimodal embedding [n, d_e]
    I_e = l2_normalize(I_f, axis=1)
    T_e = l2_normalize(T_f, axis=1)

    # scaled pairwise cosine similarities [n, n]
    logits = np.dot(I_e, T_e.T) * np.exp(t)

    # symmetric loss function
    labels = np.arange(len(I_f))
    loss_i = cross_entropy(logits, labels, axis=0)
    loss_t = cross_entropy(logits, labels, axis=1)
    return (loss_i + loss_t) / 2
