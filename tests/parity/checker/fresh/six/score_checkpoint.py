import numpy as np
from typing import Sequence


def softmax_xent_diag(logits: np.ndarray) -> np.ndarray:
    m = logits.max(axis=-1)
    return m + np.log(np.exp(logits - m[:, None]).sum(axis=-1)) - np.diag(logits)


def val_local_loss(
    feature_maps: np.ndarray,        # (B, D, H, W) straight from the vision tower
    token_feats: np.ndarray,         # (B, L, D)
    attention_mask: np.ndarray,      # (B, L) of 0/1
    temperature: float = 0.07,
) -> float:
    """Validation number: local (token level) contrastive loss averaged over pairs."""
    B, D, H, W = feature_maps.shape
    per_pair = []
    for fmap, words, m in zip(feature_maps, token_feats, attention_mask):
        patches = fmap.reshape(D, H * W)                      # (D, P)
        words = words[m == 1]                                 # (n, D)
        score = words @ patches                               # (n, P)
        score -= score.min(axis=1, keepdims=True)
        score /= score.max(axis=1, keepdims=True)
        score[score < 1 / (H * W)] = 0
        score /= score.sum(axis=1, keepdims=True)
        vis = score @ patches.T
        vis /= np.linalg.norm(vis, axis=1, keepdims=True)
        txt = words / np.linalg.norm(words, axis=1, keepdims=True)
        logits = vis @ txt.T / temperature
        per_pair.append(0.5 * (softmax_xent_diag(logits) + softmax_xent_diag(logits.T)).mean())
    return float(np.mean(per_pair))
