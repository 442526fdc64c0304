import numpy as np


def l2n(x):
    return x / np.sqrt((x ** 2).sum(-1, keepdims=True))


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def val_loss(img, txt, txt_mask, inv_tau):
    """img (n, regions, dim), txt (n, words, dim), txt_mask (n, words) with 0/1"""
    att = np.einsum('nwd,nrd->nwr', txt, img)
    att = att - att.min(2, keepdims=True)
    att = att / att.max(2, keepdims=True)
    att = att / att.sum(2, keepdims=True)
    ctx = np.einsum('nwr,nrd->nwd', att, img)

    logits = inv_tau * np.einsum('nid,njd->nij', l2n(ctx), l2n(txt))
    pair = txt_mask[:, :, None] * txt_mask[:, None, :]
    logits = logits * pair
    idx = np.arange(txt.shape[1])
    row = log_softmax(logits)[:, idx, idx]
    col = log_softmax(logits.transpose(0, 2, 1))[:, idx, idx]
    per_pair = (-(row + col) / 2 * txt_mask).sum(1) / txt_mask.sum(1)
    return per_pair.mean()
