import torch


def l2norm(x, dim=-1, eps=1e-2):
    """eps keeps the gradient small for vectors near zero"""
    return x / x.norm(dim=dim, keepdim=True).clamp(min=eps)


def patch_text_contrastive(patch_features, text_features, text_mask, inverse_temperature):
    sim = torch.bmm(text_features, patch_features.permute(0, 2, 1))
    lo = sim.amin(dim=2, keepdim=True)
    sim = (sim - lo) / (sim.amax(dim=2, keepdim=True) - lo)
    sim = sim * sim.ge(1 / patch_features.size(1))
    grouped = torch.bmm(sim / sim.sum(dim=2, keepdim=True), patch_features)
    logits = inverse_temperature * torch.bmm(l2norm(grouped), l2norm(text_features).permute(0, 2, 1))
    valid = text_mask > 0
    out = 0
    for dim, m in ((2, valid[:, None, :]), (1, valid[:, :, None])):
        logp = logits.masked_fill(~m, -torch.inf).log_softmax(dim)
        logp = logp.diagonal(dim1=1, dim2=2).masked_fill(~valid, 0)
        out = out - logp.sum(1) / valid.sum(1)
    return {"local": out.mean() / 2}
