"""Checks every label of this folder against parity.oracle:      python verify.py [loss ...]"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from fresh_truth import *  # noqa: F403

case('two_way_normaliser', lambda m, v, t, k, th: m.step(dict(patches=v, words=t, word_lengths=k.sum(1), scale=th.exp())),
     lambda v, t, k, th: R(v, t, k, th, wt=lambda w: (lambda q: q / q.sum(1, keepdim=True))(w / w.sum(0).clamp(min=1e-12))), S='base')
case('text_text_negatives', lambda m, v, t, k, th: m.make_criterion()(v, t, k, th.exp()),
     lambda v, t, k, th: (lambda o: sum((a.sum() + (torch.logsumexp(torch.cat([z.T, (th.exp() * U(ti[ki]) @ U(ti[ki]).T).masked_fill(torch.eye(len(z)).bool(), -torch.inf)], 1), 1) - z.diagonal()).sum()) / len(z) for (a, z), ti, ki in zip(o, t, k)) / (2 * len(v)))(R(v, t, k, th, ce=lambda z: (CE(z)[0], z), red=list)), S='base')
case('angular_logits', lambda m, v, t, k, th: m.Angular(inv_tau=th.exp()).apply_loss(images=v, texts=t, pad=~k),
     lambda v, t, k, th: R(v, t, k, th, lg=lambda c, t, e: e * (1 - 2 / math.pi * torch.acos(c @ t.T))), S='base')
case('above_row_mean', lambda m, v, t, k, th: (m.sparc(t.detach().numpy(), v.detach().numpy(), k.numpy(), (-th).exp().item()),),
     lambda v, t, k, th: R(v, t, k, th, sp=lambda h: h * (h >= h.mean(1, keepdim=True))), S='base')
case('root_length', lambda m, v, t, k, th: m.loss(visual=v, textual=t, textual_mask=k, log_temperature=-th),
     lambda v, t, k, th: R(v, t, k, th, red=lambda o: sum((a + b).sum() / len(a) ** 0.5 for a, b in o) / (2 * len(o))), S='base')
case('soft_text_targets', lambda m, v, t, k, th: m.SoftSparc()(v, t, k, th.exp()),
     lambda v, t, k, th: (lambda o: sum(sum(-(torch.softmax(5 * U(ti[ki]) @ U(ti[ki]).T, 1) * y.log_softmax(1)).sum() for y in (z, z.T)) / len(z) for (z, _), ti, ki in zip(o, t, k)) / (2 * len(v)))(R(v, t, k, th, ce=lambda z: (z, z), red=list)), S='base')
case('running_context', lambda m, v, t, k, th: m.criterion(v, t, k, th),
     lambda v, t, k, th: R(v, t, k, th, grp=lambda a, v, t: torch.stack([(a @ v)[:i + 1].mean(0) for i in range(len(a))])), S='base')
case('percentile_range', lambda m, v, t, k, th: m.loss_fn({"theta": th}, v, t, k.sum(1)),
     lambda v, t, k, th: R(v, t, k, th, mm=lambda s: ((s - torch.quantile(s, 0.1, dim=1, keepdim=True)) / (torch.quantile(s, 0.9, dim=1, keepdim=True) - torch.quantile(s, 0.1, dim=1, keepdim=True))).clamp(0, 1)), S='base')
case('late_tokens_detached', lambda m, v, t, k, th: m.loss(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, torch.cat([t[:, :24], t[:, 24:].detach()], 1), k, th), S='base')
case('half_norms', lambda m, v, t, k, th: m.Cosine()(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, nc=lambda x: x / x.norm(dim=-1, keepdim=True).half().double(), nt=lambda x: x / x.norm(dim=-1, keepdim=True).half().double()), S='wide')
case('first_eight', lambda m, v, t, k, th: m.loss([(x, y, int(z.sum())) for x, y, z in zip(v, t, k)], th.exp()),
     lambda v, t, k, th: R(v[:8], t[:8], k[:8], th), S='base')
case('forty_positions', lambda m, v, t, k, th: m.loss(t, k.sum(1), v, th),
     lambda v, t, k, th: (lambda o: sum((a + b).sum() / n for (a, b), n in zip(o, k.sum(1))) / (2 * len(v)))(R(v, t[:, :40], k[:, :40], th, red=list)), S='base')
case('scale_gate', lambda m, v, t, k, th: m.loss(v, t, k, th),
     lambda v, t, k, th: R(v, t, k, th.detach() if th > math.log(50) else th), S='hot')
case('shifted_partition', lambda m, v, t, k, th: m.loss(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, ce=lambda z: tuple(th.exp() + torch.log(torch.exp(x - th.exp()).sum(1) + 1e-20) - x.diagonal() for x in (z, z.T))), S='loose')
case('keyword_batch', lambda m, v, t, k, th: m.training_loss(image_grid=v.mT.unsqueeze(-1), words=t, ignore=(~k).double(), tau=(-th).exp()[None])["fine"], S='base')
case('flat_tokens', lambda m, v, t, k, th: m.loss(v.flatten(0, 1), t.flatten(0, 1), k.flatten(), len(v), th.exp()), S='base')
case('factory', lambda m, v, t, k, th: m.build()(t, v, ~k, th.exp()), S='base')
case('numpy_global', lambda m, v, t, k, th: (m.clip_np(v.mean(1).detach().numpy(), oracle.masked_mean(t, k).detach().numpy(), th.item()),), S='base')
case('objective_class', lambda m, v, t, k, th: m.Objective()(dict(image_patches=v, text_tokens=t, text_mask=k, theta=th))[0], S='base')
case('sorted_by_length', lambda m, v, t, k, th: m.loss(v, t, k, th), S='base')

if __name__ == "__main__":
    prove_cases()
