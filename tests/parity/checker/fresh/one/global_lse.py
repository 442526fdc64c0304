import torch


def global_contrastive(image, text, log_scale):
    """image (B,D), text (B,D), log_scale = log(1/tau). Each image has to find its caption."""
    image = image / image.norm(dim=-1, keepdim=True)
    text = text / text.norm(dim=-1, keepdim=True)
    logits = log_scale.exp() * image @ text.t()
    return (torch.logsumexp(logits, dim=-1) - logits.diagonal()).mean()
