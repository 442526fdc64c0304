import torch


def sparc_fine(v, t, n, tau):
    """v (B,P,D), t (B,L,D), n (B,) caption lengths, tau."""
    out = []
    for vi, ti, ni in zip(v, t, n):
        ti = ti[:ni]
        s = ti @ vi.T
        lo, hi = s.aminmax(dim=1, keepdim=True)
        w = (s - lo) / (hi - lo)
        w = w / w.sum(1, keepdim=True)
        c = w @ vi
        z = torch.cosine_similarity(c[:, None], ti[None], dim=-1) / tau
        out.append(-(z.log_softmax(1).diag() + z.log_softmax(0).diag()).mean() / 2)
    return sum(out) / len(out)
