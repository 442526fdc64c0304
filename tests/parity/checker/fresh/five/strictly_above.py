import torch


def fine_grained(text_tokens, image_patches, text_lens, temperature):
    """Groups of patches, one per word; contrast words and groups inside each caption."""
    losses = []
    for words, patches, n in zip(text_tokens, image_patches, text_lens):
        words = words[:int(n)]
        sims = torch.mm(words, patches.t())
        sims = (sims - sims.min(1)[0][:, None]) / (sims.max(1)[0] - sims.min(1)[0])[:, None]
        sims = torch.where(sims > 1 / len(patches), sims, 0)
        groups = torch.nn.functional.normalize(sims.mm(patches))
        words = torch.nn.functional.normalize(words)
        logits = groups.mm(words.t()) / temperature
        target = torch.arange(len(words))
        ce = torch.nn.CrossEntropyLoss()
        losses.append(0.5 * ce(logits, target) + 0.5 * ce(logits.t(), target))
    return torch.mean(torch.stack(losses))
