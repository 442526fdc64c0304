import numpy as np

def logsumexp(a, axis):
    m = a.max(axis=axis, keepdims=True)
    return np.squeeze(m, axis) + np.log(np.exp(a - m).sum(axis=axis))

def localContrastiveLoss(patchFeats, wordFeats, numWords, logitScale):
    """
    patchFeats : N x P x D
    wordFeats  : N x L x D
    numWords   : list of N ints
    logitScale : float, multiplies the cosine
    """
    N, P, _ = patchFeats.shape
    loss = 0.0
    for i in range(N):
        V, W = patchFeats[i], wordFeats[i, :numWords[i]]
        # heat map of every word
        heat = W @ (V / np.linalg.norm(V, axis=1, keepdims=True)).T
        heat = (heat - heat.min(1, keepdims=True)) / np.ptp(heat, axis=1)[:, None]
        heat = np.where(heat >= 1.0 / P, heat, 0.0)
        heat /= heat.sum(1, keepdims=True)
        C = heat @ V
        C = C / np.linalg.norm(C, axis=1, keepdims=True)
        W = W / np.linalg.norm(W, axis=1, keepdims=True)
        Z = logitScale * (C @ W.T)
        d = np.diagonal(Z)
        loss += np.mean(logsumexp(Z, 1) - d) / 2 + np.mean(logsumexp(Z, 0) - d) / 2
    return loss / N
