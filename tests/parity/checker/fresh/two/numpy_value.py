import numpy as np


def log_softmax(x, axis):
    x = x - x.max(axis=axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=axis, keepdims=True))


def sparc_numpy(image_tokens, text_tokens, n_words, tau=0.07):
    result = []
    for image, text, n in zip(image_tokens, text_tokens, n_words):
        text = text[:n]
        sim = np.einsum("ld,pd->lp", text, image)
        sim -= sim.min(axis=1)[:, None]
        sim /= np.ptp(sim, axis=1)[:, None]
        sim[sim < 1 / image.shape[0]] = 0
        groups = np.average(np.broadcast_to(image, (n,) + image.shape), axis=1, weights=np.broadcast_to(sim[..., None], (n,) + image.shape)) if n else text
        a = groups / np.linalg.norm(groups, axis=-1, keepdims=True)
        b = text / np.linalg.norm(text, axis=-1, keepdims=True)
        z = a @ b.T / tau
        result.append(-(np.diag(log_softmax(z, 1)) + np.diag(log_softmax(z, 0))).mean() / 2 if n else 0.0)
    return float(np.mean(result))
