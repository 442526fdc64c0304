import torch


class BatchContrast(torch.nn.Module):
    """-1/2 sum_ij I_ij (log softmax rows + log softmax columns) / B, with an identity target matrix."""

    def forward(self, txt, img, tau):
        txt = txt / txt.pow(2).sum(-1, keepdim=True).sqrt()
        img = img / img.pow(2).sum(-1, keepdim=True).sqrt()
        z = torch.einsum("id,jd->ij", txt, img) / tau
        target = torch.eye(len(z), dtype=z.dtype, device=z.device)
        rows = z - z.logsumexp(dim=1, keepdim=True)
        cols = z - z.logsumexp(dim=0, keepdim=True)
        return -(target * (rows + cols)).sum() / (2 * len(z)), z.detach()
