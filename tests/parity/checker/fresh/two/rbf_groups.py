import torch


def loss(v, t, lens, tau):
    out = []
    for img, txt, n in zip(v, t, lens.tolist()):
        txt = txt[:n]
        kern = torch.exp(-(txt.unsqueeze(1) - img.unsqueeze(0)).square().mean(-1) / 2)
        kern = kern - kern.amin(1, keepdim=True)
        kern = kern / kern.amax(1, keepdim=True)
        kern = kern.where(kern >= 1 / len(img), torch.zeros(()).to(kern))
        c = kern @ img
        c = c / c.norm(dim=1, keepdim=True)
        u = txt / txt.norm(dim=1, keepdim=True)
        z = c @ u.T / tau
        target = torch.arange(n)
        out.append((torch.nn.functional.cross_entropy(z, target) + torch.nn.functional.cross_entropy(z.T, target)) / 2)
    return torch.stack(out).mean()
