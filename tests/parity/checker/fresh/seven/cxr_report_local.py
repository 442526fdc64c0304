"""Local report/region loss for chest X-ray pretraining (ResNet-50 + BioClinicalBERT)."""
import torch
import torch.nn.functional as F


def region_attention(words, context):
    """words (D, T), context (D, ih, iw) -> weighted context (D, T), attention maps (T, ih, iw)"""
    ih, iw = context.shape[-2:]
    context = context.flatten(1)                    # (D, S)
    attn = words.t() @ context                      # (T, S)
    low = attn.min(dim=1, keepdim=True)[0]
    high = attn.max(dim=1, keepdim=True)[0]
    attn = (attn - low) / (high - low)
    attn = attn * (attn >= 1.0 / (ih * iw))
    attn = attn / attn.sum(dim=1, keepdim=True)
    return context @ attn.t(), attn.view(-1, ih, iw)


def local_loss(img_features, words_emb, cap_lens, temp_loss=0.07):
    att_maps, losses = [], []
    for i in range(img_features.shape[0]):
        n_words = int(cap_lens[i])
        word = words_emb[i, :, :n_words]            # (D, T)
        region, maps = region_attention(word, img_features[i])
        att_maps.append(maps)

        word = word / word.norm(2, dim=0, keepdim=True)
        region = region / region.norm(2, dim=0, keepdim=True)
        scores = region.t() @ word / temp_loss
        labels = torch.arange(n_words, device=scores.device)
        loss0 = F.cross_entropy(scores, labels)
        loss1 = F.cross_entropy(scores.t(), labels)
        losses.append((loss0 + loss1) / 2)
    return torch.stack(losses).mean(), att_maps
