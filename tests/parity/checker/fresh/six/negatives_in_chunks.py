import torch
import torch.nn.functional as F


def chunked_clip_loss(image_features, text_features, logit_scale, chunk_size=16):
    """CLIP loss a chunk at a time, so that the matrix of logits never gets large."""
    image_features = F.normalize(image_features, dim=-1)
    text_features = F.normalize(text_features, dim=-1)
    total = image_features.new_zeros(())
    for img, txt in zip(image_features.split(chunk_size), text_features.split(chunk_size)):
        logits = logit_scale * img @ txt.T
        labels = torch.arange(len(img), device=logits.device)
        total = total + F.cross_entropy(logits, labels, reduction="sum") + F.cross_entropy(logits.T, labels, reduction="sum")
    return total / (2 * len(image_features))
