import torch
import torch.nn.functional as F


@torch.no_grad()
def alignment(tokens, patches):
    sim = torch.matmul(tokens, patches.transpose(-1, -2))
    sim_min, sim_max = torch.aminmax(sim, dim=-1, keepdim=True)
    sim = (sim - sim_min) / (sim_max - sim_min)
    sim[sim < 1 / sim.shape[-1]] = 0
    return sim / sim.sum(-1, keepdim=True)


def compute_local_loss(outputs, inverse_temperature):
    """outputs: projected states of both towers, and the tokenizer's attention mask"""
    patches = outputs["image_states"]
    tokens = outputs["text_states"]
    mask = outputs["attention_mask"]

    grouped = torch.matmul(alignment(tokens, patches), patches)
    logits = inverse_temperature * torch.matmul(
        F.normalize(grouped, dim=-1), F.normalize(tokens, dim=-1).transpose(-1, -2))
    labels = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2])
    labels = labels.masked_fill(mask == 0, -100)
    i2t = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    t2i = F.cross_entropy(logits, labels, reduction="none")
    lengths = mask.sum(-1).clamp(min=1)
    return (((i2t + t2i) / 2).sum(-1) / lengths).mean()
