import torch
import torch.nn.functional as F

MAX_TOKENS = 64


def thin(tokens):
    """Findings sections can be long; the loss is quadratic in the number of tokens."""
    return tokens if len(tokens) <= MAX_TOKENS else tokens[::2]


def attend(tokens, patches):
    attn = tokens @ patches.t()
    attn = attn - attn.amin(dim=1, keepdim=True)
    attn = attn / attn.amax(dim=1, keepdim=True)
    attn = attn * (attn >= 1.0 / patches.size(0))
    return attn @ patches / attn.sum(dim=1, keepdim=True)


class FindingsLoss(torch.nn.Module):
    def __init__(self, init=2.66):
        super().__init__()
        self.log_scale = torch.nn.Parameter(torch.tensor(init))

    def forward(self, findings, findings_mask, scan):
        """findings (B,L,D), findings_mask (B,L) bool, scan (B,P,D)"""
        losses = []
        for t, m, v in zip(findings, findings_mask, scan):
            t = thin(t[m])
            logits = self.log_scale.exp() * F.normalize(attend(t, v), dim=1) @ F.normalize(t, dim=1).t()
            labels = torch.arange(len(t), device=t.device)
            losses.append(0.5 * F.cross_entropy(logits, labels) + 0.5 * F.cross_entropy(logits.t(), labels))
        return torch.stack(losses).mean()
