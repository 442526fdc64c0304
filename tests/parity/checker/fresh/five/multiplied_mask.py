import numpy as np


def softmax_xent(z):
    z = z - z.max(-1, keepdims=True)
    return np.log(np.exp(z).sum(-1)) - np.diagonal(z, axis1=1, axis2=2)


def sparc_local(img, txt, msk, tau):
    """img (B,P,D), txt (B,L,D), msk (B,L) 1 for words"""
    sim = np.einsum("bld,bpd->blp", txt, img)
    sim = (sim - sim.min(2, keepdims=True)) / np.ptp(sim, axis=2, keepdims=True)
    sim = np.where(sim < 1 / img.shape[1], 0, sim)
    grp = np.einsum("blp,bpd->bld", sim / sim.sum(2, keepdims=True), img)
    grp /= np.linalg.norm(grp, axis=-1, keepdims=True)
    txt = txt / np.linalg.norm(txt, axis=-1, keepdims=True)
    z = np.einsum("bld,bmd->blm", grp, txt) / tau
    nll = softmax_xent(z * msk[:, None, :]) + softmax_xent(z.swapaxes(1, 2) * msk[:, None, :])
    return 0.5 * np.mean((nll * msk).sum(1) / msk.sum(1))
