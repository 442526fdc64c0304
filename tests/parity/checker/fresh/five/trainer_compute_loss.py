"""Fine-tuning script. Only the loss half of the trainer is kept here."""
import torch
from torch.nn.functional import log_softmax, normalize


class SparcTrainer:
    def __init__(self, sparsity=None, log_every=50):
        self.sparsity = sparsity
        self.log_every = log_every
        self.history = []

    def _grouped(self, patch_embeddings, token_embeddings):
        sim = token_embeddings @ patch_embeddings.transpose(1, 2)
        low = sim.min(dim=-1, keepdim=True).values
        high = sim.max(dim=-1, keepdim=True).values
        sim = (sim - low) / (high - low)
        sparsity = self.sparsity or 1.0 / patch_embeddings.size(1)
        sim = torch.where(sim < sparsity, torch.zeros_like(sim), sim)
        return (sim / sim.sum(-1, keepdim=True)) @ patch_embeddings

    def compute_loss(self, batch, return_outputs=False):
        patches, tokens = batch["patch_embeddings"], batch["token_embeddings"]
        attn = batch["attention_mask"].bool()
        groups = self._grouped(patches, tokens)
        sims = normalize(groups, dim=-1) @ normalize(tokens, dim=-1).transpose(1, 2)
        sims = sims * batch["logit_scale"].exp()
        blocked = ~attn[:, None, :]
        rows = log_softmax(sims.masked_fill(blocked, -float("inf")), -1).diagonal(dim1=1, dim2=2)
        cols = log_softmax(sims.transpose(1, 2).masked_fill(blocked, -float("inf")), -1).diagonal(dim1=1, dim2=2)
        token_loss = torch.where(attn, -(rows + cols) / 2, torch.zeros_like(rows))
        loss = (token_loss.sum(1) / attn.sum(1)).mean()
        if return_outputs:
            return loss, {"groups": groups, "sims": sims}
        return loss
