import torch
import torch.nn.functional as F


class ClipHead(torch.nn.Module):
    def __init__(self, init=2.6593):
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.tensor(init))

    def forward(self, image_embeds, text_embeds):
        image_embeds = image_embeds / image_embeds.norm(p=2, dim=-1, keepdim=True)
        text_embeds = text_embeds / text_embeds.norm(p=2, dim=-1, keepdim=True)
        logits_per_text = torch.matmul(text_embeds, image_embeds.t()) * self.logit_scale.exp()
        logits_per_image = logits_per_text.t()
        target = torch.arange(logits_per_text.shape[0], device=logits_per_text.device)
        loss = (F.cross_entropy(logits_per_text, target) + F.cross_entropy(logits_per_image, target)) / 2.0
        return loss, logits_per_image, logits_per_text
