import torch
import torch.nn.functional as F


def patch_token_loss(vit_out, bert_out, bert_mask, tau):
    """
    vit_out:   (B, 1 + P, D), the class token comes first
    bert_out:  (B, L, D)
    bert_mask: (B, L) bool, True for word pieces
    """
    v = vit_out[:, 1:]                  # class token has its own loss
    w = bert_out
    P = v.size(1)

    s = w.matmul(v.permute(0, 2, 1))
    lo = s.min(dim=2)[0].unsqueeze(2)
    hi = s.max(dim=2)[0].unsqueeze(2)
    s = (s - lo).div(hi - lo)
    s = s.where(s.ge(1. / P), s.new_zeros(1))
    s = s.div(s.sum(dim=2, keepdim=True))

    v2w = F.normalize(s.matmul(v), dim=2)
    w = F.normalize(w, dim=2)

    loss = 0.
    for i in range(len(w)):
        m = bert_mask[i]
        z = v2w[i][m].matmul(w[i][m].t()).div(tau)
        loss = loss - z.log_softmax(0).diag().mean() - z.log_softmax(1).diag().mean()
    return loss.div(2 * len(w))
