import torch
import torch.nn.functional as F


def clip_loss(image_features, text_features, logit_scale):
    """Symmetric InfoNCE over the batch. logit_scale is already exponentiated."""
    image_features = F.normalize(image_features, p=2, dim=1)
    text_features = F.normalize(text_features, p=2, dim=1)
    logits_per_image = logit_scale * image_features @ text_features.t()
    logits_per_text = logits_per_image.t()
    labels = torch.arange(image_features.shape[0], device=image_features.device, dtype=torch.long)
    return 0.5 * (F.cross_entropy(logits_per_image, labels) + F.cross_entropy(logits_per_text, labels))
