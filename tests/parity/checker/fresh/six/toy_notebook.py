# exported from sparc_from_scratch.ipynb
import torch
import torch.nn.functional as F

# In[3]:
def local_alignment_loss(image_patches, text_tokens, inv_temperature):
    batch_size, num_tokens, dim = text_tokens.shape
    num_patches = image_patches.shape[1]

    # 1. similarity
    sim = torch.bmm(text_tokens, image_patches.transpose(1, 2))
    # 2. min-max
    sim_min = sim.min(dim=2, keepdim=True).values
    sim_max = sim.max(dim=2, keepdim=True).values
    sim_norm = (sim - sim_min) / (sim_max - sim_min)
    # 3. threshold
    sim_sparse = torch.where(sim_norm < 1 / num_patches, 0.0, sim_norm)
    # 4. weights
    alpha = sim_sparse / sim_sparse.sum(dim=2, keepdim=True)
    # 5. language-grouped vision embeddings
    grouped = torch.bmm(alpha, image_patches)

    # 6. contrast tokens and groups in each pair
    grouped = F.normalize(grouped, dim=2)
    text_tokens = F.normalize(text_tokens, dim=2)
    logits = inv_temperature * torch.bmm(grouped, text_tokens.transpose(1, 2))
    targets = torch.arange(num_tokens).unsqueeze(0).expand(batch_size, num_tokens)
    loss = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.transpose(1, 2), targets)) / 2
    return loss

# In[4]:
# local_alignment_loss(torch.randn(4, 49, 64), torch.randn(4, 12, 64), 1 / 0.07)
