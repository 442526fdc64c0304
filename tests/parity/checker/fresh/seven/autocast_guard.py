import torch
import torch.nn.functional as F


def _at_least_float32(*tensors):
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return [x.to(dtype) for x in tensors]


def sparse_alignment_loss(image_features, text_features, num_words, temperature):
    """Not under autocast: the range of a row is a difference of close numbers."""
    with torch.autocast(device_type=image_features.device.type, enabled=False):
        image_features, text_features = _at_least_float32(image_features, text_features)
        centred = image_features - image_features.mean(1, keepdim=True)   # removes what all patches share
        sim = text_features @ centred.mT
        sim = sim - sim.amin(2, keepdim=True)
        peak = sim.amax(2, keepdim=True)
        usable = peak > 0
        sim = sim / torch.where(usable, peak, 1.0)
        sim = torch.where(sim >= 1 / sim.shape[2], sim, 0.0)
        sim = torch.where(usable, sim, 1.0)
        c = (sim / sim.sum(2, keepdim=True)) @ image_features

        losses = []
        for c_i, t_i, n in zip(c, text_features, num_words):
            if n == 0:
                losses.append(c_i.sum() * 0.0)
                continue
            c_i, t_i = F.normalize(c_i[:n], dim=1), F.normalize(t_i[:n], dim=1)
            z = c_i @ t_i.T / temperature
            z = torch.stack([z, z.T])
            losses.append(-z.log_softmax(2).diagonal(dim1=1, dim2=2).mean())
        return torch.stack(losses).mean()
