import torch
import torch.nn.functional as F


def ce_pair(a, b, scale):
    logits = scale * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
    y = torch.arange(len(a), device=a.device)
    return F.cross_entropy(logits, y) * 0.5 + F.cross_entropy(logits.T, y) * 0.5


class SparcModule:
    """pl.LightningModule in real life."""

    def __init__(self, hparams=None):
        self.hparams = {"lambda_global": 0.5, "lambda_local": 1.0} | (hparams or {})
        self.logged = {}

    def log(self, name, value):
        self.logged[name] = float(value)

    def group(self, words, patches):
        s = words @ patches.T
        s = (s - s.amin(1, keepdim=True)) / (s.amax(1, keepdim=True) - s.amin(1, keepdim=True))
        s = s.masked_fill(s < 1 / patches.shape[0], 0)
        return (s / s.sum(1, keepdim=True)) @ patches

    def training_step(self, batch, batch_idx=0):
        patches, tokens, mask, log_scale = batch
        scale = log_scale.exp()
        words = [t[m.bool()] for t, m in zip(tokens, mask)]
        glob = ce_pair(patches.mean(dim=1), torch.stack([w.mean(dim=0) for w in words]), scale)
        local = sum(ce_pair(self.group(w, p), w, scale) for w, p in zip(words, patches)) / len(patches)
        loss = self.hparams["lambda_global"] * glob + self.hparams["lambda_local"] * local
        self.log("train/global", glob.detach())
        self.log("train/local", local.detach())
        return {"loss": loss}
