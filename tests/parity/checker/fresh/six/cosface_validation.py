import numpy as np


def _unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def margin_local_loss(v, t, mask, scale, margin=0.2):
    """SPARC token loss with an additive cosine margin. v [B,P,D], t [B,L,D], mask [B,L] bool, scale float."""
    out = []
    for vb, tb, mb in zip(v, t, mask):
        tb = tb[mb]
        sim = tb @ vb.T
        sim = (sim - sim.min(-1, keepdims=True)) / (sim.max(-1, keepdims=True) - sim.min(-1, keepdims=True))
        sim[sim < 1.0 / len(vb)] = 0.0
        grouped = (sim / sim.sum(-1, keepdims=True)) @ vb
        cos = _unit(grouped) @ _unit(tb).T
        logits = scale * (cos - margin * np.eye(len(tb)))
        pos = np.diag(logits)
        rows = np.logaddexp.reduce(logits, axis=1) - pos
        cols = np.logaddexp.reduce(logits, axis=0) - pos
        out.append((rows.mean() + cols.mean()) / 2)
    return np.mean(out)
