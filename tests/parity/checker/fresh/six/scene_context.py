import torch
import torch.nn.functional as F


class ContextualGroups:
    """Adds the scene to every language-grouped vector."""

    def __init__(self, alpha: float = 0.5):
        self.alpha = alpha

    def groups(self, patches, words):
        sim = words @ patches.t()
        low, high = sim.amin(1, True), sim.amax(1, True)
        sim = (sim - low) / (high - low)
        sim = torch.where(sim < 1 / patches.shape[0], torch.zeros_like(sim), sim)
        local = sim.div(sim.sum(1, True)) @ patches
        scene = patches.mean(0, keepdim=True)
        return self.alpha * local + (1 - self.alpha) * scene

    def __call__(self, batch, inv_temp):
        losses = []
        for patches, words, mask in zip(batch["patches"], batch["words"], batch["word_mask"]):
            words = words[mask.bool()]
            z = inv_temp * F.normalize(self.groups(patches, words), dim=1) @ F.normalize(words, dim=1).t()
            y = torch.arange(z.shape[0])
            losses.append(torch.stack([F.cross_entropy(z, y), F.cross_entropy(z.t(), y)]).mean())
        return {"loss_local": torch.stack(losses).mean()}
