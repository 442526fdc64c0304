import torch
import torch.nn.functional as F

MAX_WORDS = 36


def loss_fn(patch_emb, word_emb, word_count, inverse_temperature):
    word_mask = torch.arange(word_emb.size(1)).unsqueeze(0) < word_count.unsqueeze(1)
    sims = word_emb.bmm(patch_emb.transpose(1, 2))
    sims = (sims - sims.amin(-1, True)) / (sims.amax(-1, True) - sims.amin(-1, True))
    sims = sims.masked_fill(sims < 1 / patch_emb.size(1), 0)
    grouped = F.normalize(sims.bmm(patch_emb), dim=-1)
    words = F.normalize(word_emb, dim=-1)
    total = 0
    for a, b in ((grouped, words), (words, grouped)):
        logits = (inverse_temperature * a.bmm(b.transpose(1, 2))).masked_fill(~word_mask.unsqueeze(1), -1e30)
        logp = logits.log_softmax(-1).diagonal(dim1=1, dim2=2)
        total = total - logp.masked_fill(~word_mask, 0).sum(1) / word_count.clamp(max=MAX_WORDS)
    return total.mean() / 2
