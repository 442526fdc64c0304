import torch
import torch.nn.functional as F


def token_loss(image_feats, text_feats, text_mask, log_scale):
    """
    image_feats: (B, P, D)
    text_feats:  (B, T, D)
    text_mask:   (B, T) long
    log_scale:   parameter, log(1/0.07) at the start
    """
    scale = log_scale.exp()
    sims = text_feats @ image_feats.permute(0, 2, 1)
    sims_min = sims.min(-1, keepdim=True)[0]
    sims_max = sims.max(-1, keepdim=True)[0]
    sims = (sims - sims_min) / (sims_max - sims_min)
    sims = torch.where(sims < 1 / image_feats.shape[1], torch.zeros_like(sims), sims)
    grouped = F.normalize(sims / sims.sum(-1, keepdim=True) @ image_feats, dim=-1)
    text_feats = F.normalize(text_feats, dim=-1)
    cos = grouped @ text_feats.permute(0, 2, 1)

    mask = text_mask.bool()
    image_logits = (scale * cos).masked_fill(~mask[:, None, :], -1e30)
    text_logits = (scale.item() * cos.permute(0, 2, 1)).masked_fill(~mask[:, None, :], -1e30)

    def nll(logits):
        d = -F.log_softmax(logits, dim=-1).diagonal(dim1=1, dim2=2)
        return ((d * mask).sum(1) / mask.sum(1)).mean()

    return 0.5 * nll(image_logits) + 0.5 * nll(text_logits)
