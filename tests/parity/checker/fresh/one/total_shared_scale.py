import torch
import torch.nn.functional as F


def sparc_total(out, theta, lambda_g=0.5, lambda_f=1.0):
    """out: dict with v, t, v_bar, t_bar, mask (bool). The temperature is learned by the global loss and shared."""
    k = theta.exp()

    def ce(z):
        return F.cross_entropy(z, torch.arange(z.shape[0]))

    z = k * F.normalize(out["v_bar"], dim=-1) @ F.normalize(out["t_bar"], dim=-1).T
    loss_g = (ce(z) + ce(z.T)) / 2
    k_fixed = float(k)
    loss_f = []
    for v, t, m in zip(out["v"], out["t"], out["mask"]):
        t = t[m]
        s = t @ v.T
        s = s - s.amin(1, keepdim=True)
        s = s / s.amax(1, keepdim=True)
        s = s * (s >= 1 / len(v))
        z = k_fixed * F.normalize(s @ v, dim=-1) @ F.normalize(t, dim=-1).T
        loss_f.append((ce(z) + ce(z.T)) / 2)
    loss_f = torch.stack(loss_f).mean()
    return {"loss": lambda_g * loss_g + lambda_f * loss_f, "loss_g": loss_g, "loss_f": loss_f}
