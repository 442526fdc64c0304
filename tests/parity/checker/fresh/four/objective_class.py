import torch
import torch.nn.functional as F


class Objective:
    def __init__(self, lambdas=(0.5, 1.0)):
        self.lambdas = lambdas

    @staticmethod
    def info_nce(a, b, scale):
        z = scale * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
        y = torch.arange(len(z))
        return 0.5 * F.cross_entropy(z, y) + 0.5 * F.cross_entropy(z.T, y)

    @staticmethod
    def group(words, patches):
        s = words @ patches.T
        s = s - s.amin(1, keepdim=True)
        s = s / s.amax(1, keepdim=True)
        s = s * (s >= 1 / len(patches))
        return s @ patches / s.sum(1, keepdim=True)

    def __call__(self, features):
        v, t, m = features["image_patches"], features["text_tokens"], features["text_mask"]
        scale = features["theta"].exp()
        words = [x[y] for x, y in zip(t, m)]
        coarse = self.info_nce(v.mean(1), torch.stack([w.mean(0) for w in words]), scale)
        fine = torch.stack([self.info_nce(self.group(w, p), w, scale) for w, p in zip(words, v)]).mean()
        return self.lambdas[0] * coarse + self.lambdas[1] * fine, (coarse, fine)
