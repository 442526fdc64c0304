"""The survey of public SPARC losses, line by line: what each deviation is called, and how it is said.

`words` is a clause that follows "Your loss equals eq. 6, except that"; it may use {value}, {what}, {way}, {direction}, and
{patches}, {sigma} for the user's P and 1/P.  `fix` is torch-like code, names as in sparc_ref.alignment: s (B,L,P), s_hat, a,
c (B,L,D), t (B,L,D), v (B,P,D), mask (B,L) true = real token, scale = 1/tau, z = logits (B,L,L).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Deviation:
    """One line of the survey.  seen: how often it was met there; hidden_by: conditions under which nothing of it shows."""

    id: str
    title: str
    words: str
    equation: str
    fix: str
    training: str
    hidden_by: tuple[str, ...] = ()
    harmless: bool = False
    seen: float = 0

    @property
    def stage(self) -> str:
        return self.id.split(".")[0]


SURVEY = (
    Deviation(
        "similarity.cosine", "patches are l2-normalised before the inner product",
        "patches are l2-normalised before the inner product",
        "section 3.2, s = t v'",
        "s = t @ v.mT                          # v as it comes, not F.normalize(v, dim=-1)\n"
        "                                      # normalise c and t later, for the logits only",
        "The length of a patch no longer counts: other patches pass the threshold, with other weights, and the model "
        "cannot learn to silence a patch by making it short.",
        hidden_by=("unit-norm patches",), seen=5,
    ),
    Deviation(
        "similarity.detached", "no gradient through the alignment",
        "no gradient flows through the alignment: the weights act as constants in the backward pass",
        "eqs. 2-5; nothing is detached",
        "s = t @ v.mT                          # without .detach(), no_grad() or stop_gradient\n"
        "a = a / a.sum(-1, keepdim=True)       # the same here",
        "The loss is right and its gradient is not. Patches and tokens are pulled together where they are aligned already, but "
        "nothing teaches which patches a token should pick.",
        seen=2,
    ),
    Deviation(
        "similarity.patches_group", "patches group tokens, not tokens patches",
        "every patch averages the tokens that resemble it, instead of every token its patches",
        "eqs. 2-5",
        "s = t @ v.mT                          # (B,L,P): min, max, threshold and sum run over P\n"
        "c = a @ v                             # (B,L,D): one group of patches per token\n"
        "z = scale * unit(c) @ unit(t).mT      # (B,L,L): tokens are contrasted, not patches",
        "Patches are told apart instead of words: P classes per picture in place of L_i per caption, and background "
        "patches that no word means are rows like any other.",
        seen=1,
    ),
    Deviation(
        "similarity.scaled", "similarity multiplied by the temperature's inverse",
        "the similarity is multiplied by 1/tau, which eq. 2 cancels",
        "s = t v'",
        "s = t @ v.mT                          # optional: the factor cancels",
        "None: eq. 2 divides by the range of the row.",
        harmless=True, seen=4,
    ),
    Deviation(
        "similarity.tokens_normalised", "tokens l2-normalised before the inner product",
        "tokens are l2-normalised before the inner product, which eq. 2 cancels",
        "s = t v'",
        "s = t @ v.mT                          # optional: the length of t cancels",
        "None: eq. 2 divides by the range of the row.",
        harmless=True, seen=3,
    ),
    Deviation(
        "minmax.nan_on_flat", "0/0 where every patch is alike",
        "a token to which every patch is equally similar gives 0/0 = NaN in eq. 2",
        "eq. 2",
        "flat = hi == lo\n"
        "s_hat = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))\n"
        "                                      # equal weights: a = 1/P",
        "Nothing, until one token is orthogonal to all differences between patches, or embeddings are exactly zero: "
        "then the loss or its gradient is NaN and the whole update with it.",
        hidden_by=("no flat rows",), seen=11,
    ),
    Deviation(
        "minmax.epsilon", "epsilon in the denominator of eq. 2",
        "an epsilon of {value} in the denominator makes c = 0 where every patch is equally similar; elsewhere it cancels",
        "eq. 2",
        "flat = hi == lo\n"
        "s_hat = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))\n"
        "                                      # equal weights: a = 1/P",
        "Nothing in float32 and float64 while rows have a range. An epsilon below 3e-8 is 0 in float16. A flat row "
        "becomes a group of no patches whose logits are all 0.",
        hidden_by=("no flat rows",), seen=10,
    ),
    Deviation(
        "minmax.missing", "no min-max normalisation",
        "there is no min-max normalisation: the threshold acts on the inner products themselves",
        "eq. 2",
        "lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)\n"
        "s_hat = (s - lo) / (hi - lo)          # then s_hat >= sigma",
        "What passes the threshold depends on the length of the embeddings, which drifts during training; a token whose "
        "products are all below sigma has no patches at all.",
        seen=1,
    ),
    Deviation(
        "minmax.detached", "no gradient through minimum and maximum",
        "no gradient flows through the minimum and maximum of eq. 2",
        "eq. 2; nothing is detached",
        "lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)    # without .detach() or no_grad()",
        "The loss is right. The gradient of a row no longer sums to zero over its patches: a common shift of the row, which "
        "changes nothing, is trained.",
    ),
    Deviation(
        "minmax.nan_from_padding", "infinities at padding reach the min-max",
        "similarities of padded tokens are filled with an infinity before eq. 2, and inf - inf is NaN",
        "eq. 2",
        "s = t @ v.mT                          # no masked_fill(-inf) here: rows are separate in eqs. 2-5\n"
        "z = z.masked_fill(~mask[:, None], -torch.inf)   # padding is masked in the logits",
        "NaN in the first batch with padding.",
        hidden_by=("no padding",), seen=1,
    ),
    Deviation(
        "threshold.absent", "no threshold",
        "there is no threshold: every patch but the least similar keeps a weight",
        "eq. 3",
        "s_til = torch.where(s_hat >= 1 / v.shape[1], s_hat, 0.0)\n"
        "a = s_til / s_til.sum(-1, keepdim=True)",
        "Little: at sigma = 1/P eq. 3 drops few patches. The groups are a little less sparse.",
        seen=2,
    ),
    Deviation(
        "threshold.constant", "a constant threshold",
        "sigma is {value} instead of 1/P ({sigma} for {patches} patches)",
        "eq. 3",
        "sigma = 1 / v.shape[1]                # P, the number of patches\n"
        "s_til = torch.where(s_hat >= sigma, s_hat, 0.0)",
        "How sparse the groups are no longer follows the resolution: the same number keeps other patches with another P.",
        seen=11,
    ),
    Deviation(
        "threshold.strict", "> for >=",
        "the threshold is strict: a patch whose s_hat is exactly sigma is dropped",
        "eq. 3",
        "s_til = torch.where(s_hat >= sigma, s_hat, 0.0)",
        "None that one could measure: exact ties are rare in floating point.",
        seen=3,
    ),
    Deviation(
        "threshold.on_weights", "the threshold acts on weights that sum to one",
        "the threshold acts after eq. 4, on weights that sum to one, which are then normalised again",
        "eq. 3",
        "s_til = torch.where(s_hat >= 1 / v.shape[1], s_hat, 0.0)   # s_hat in [0, 1], eq. 2\n"
        "a = s_til / s_til.sum(-1, keepdim=True)",
        "Far sparser groups: every patch below the average weight goes, about half of them. The paper's prose can be read so, "
        "its equations cannot.",
    ),
    Deviation(
        "weights.detached", "no gradient through the weights",
        "no gradient flows through the weights: they act as constants in the backward pass",
        "eqs. 4-5; nothing is detached",
        "c = a @ v                             # without a.detach()",
        "The loss is right and its gradient is not. Patches and tokens are pulled together where they are aligned already, but "
        "nothing teaches which patches a token should pick.",
        seen=1,
    ),
    Deviation(
        "weights.softmax", "softmax over patches for eqs. 2-4",
        "the weights are a softmax over patches{way}, without min-max and threshold",
        "eqs. 2-4; Table 8's ablation",
        "s_hat = (s - lo) / (hi - lo)\n"
        "s_til = torch.where(s_hat >= 1 / v.shape[1], s_hat, 0.0)\n"
        "a = s_til / s_til.sum(-1, keepdim=True)",
        "One patch wins per token as soon as embeddings are long or the temperature is low, and gradients reach few patches. "
        "Table 8 of the paper has it as an ablation.",
        seen=1,
    ),
    Deviation(
        "weights.softmax_minmax", "softmax of the min-max similarity",
        "the weights are a softmax over patches of {value}, where eq. 4 divides by the sum",
        "eq. 4",
        "a = s_til / s_til.sum(-1, keepdim=True)",
        "Inputs in [0, 1] make a softmax nearly even: no weight is more than e = 2.7 times another at temperature 1, "
        "and dropped patches that enter as 0 keep a weight.",
        seen=0.5,
    ),
    Deviation(
        "weights.raw", "the raw similarity as weights",
        "the weights are the inner products themselves, {what}",
        "eqs. 2-4",
        "s_hat = (s - lo) / (hi - lo)\n"
        "s_til = torch.where(s_hat >= 1 / v.shape[1], s_hat, 0.0)\n"
        "a = s_til / s_til.sum(-1, keepdim=True)",
        "Patches unlike the token enter with negative weights, and nothing is sparse.",
        seen=1,
    ),
    Deviation(
        "weights.mean", "weights divided by their mean",
        "the weights are divided by their mean instead of their sum, which the l2 norm of c cancels",
        "eq. 4", "a = s_til / s_til.sum(-1, keepdim=True)", "None: c is normalised before the logits.", harmless=True, seen=1,
    ),
    Deviation(
        "grouping.normalised_patches", "normalised patches are averaged",
        "l2-normalised patches are averaged",
        "eq. 5",
        "c = a @ v                             # v as it comes, not F.normalize(v, dim=-1)",
        "Long patches count no more than short ones in the group's direction.",
        hidden_by=("unit-norm patches",), seen=4,
    ),
    Deviation(
        "grouping.detached", "no gradient through the patches that are averaged",
        "no gradient flows through the patches as they are averaged, only through their weights",
        "eq. 5; nothing is detached",
        "c = a @ v                             # without v.detach()",
        "The loss is right and its gradient is not: patches learn which tokens pick them, not what they say when picked.",
    ),
    Deviation(
        "norm.missing", "no l2 norm before the logits",
        "c and t are not l2-normalised before the logits: inner products stand where cosines belong",
        "eq. 6, phi is the cosine",
        "c, t = F.normalize(c, dim=-1), F.normalize(t, dim=-1)\n"
        "z = scale * c @ t.mT",
        "Logits grow with the square of the embeddings' length, so that the model can lower the loss by growing, and tau no "
        "longer sets the sharpness.",
        seen=2,
    ),
    Deviation(
        "norm.missing_c", "no l2 norm on the grouped patches",
        "the grouped patches c are not l2-normalised before the logits",
        "eq. 6, phi is the cosine", "c = F.normalize(c, dim=-1)            # before z = scale * c @ t.mT",
        "Logits grow with the length of the patches, so that the model can lower the loss by growing them.",
        seen=0.5,
    ),
    Deviation(
        "norm.missing_t", "no l2 norm on the tokens",
        "the tokens t are not l2-normalised before the logits",
        "eq. 6, phi is the cosine", "t = F.normalize(t, dim=-1)            # before z = scale * c @ t.mT",
        "Logits grow with the length of the tokens; a long token attracts every group in its caption.",
        seen=0.5,
    ),
    Deviation(
        "logits.padding_not_masked", "padded keys are not masked",
        "padded tokens still compete in the softmax{way}",
        "eq. 6, k runs over real tokens",
        "z = z.masked_fill(~mask[:, None, :], -torch.inf)         # columns, both directions\n"
        "y = z_raw.mT.masked_fill(~mask[:, None, :], -torch.inf)",
        "Real tokens are pushed away from whatever the text tower puts at padding; the loss depends on how far a batch "
        "is padded, so that short captions weigh differently in other company.",
        hidden_by=("no padding",), seen=7,
    ),
    Deviation(
        "logits.padding_filled_zero", "padded keys get a logit of about 0",
        "padded tokens get a logit of about 0 instead of minus infinity, and still compete{way}",
        "eq. 6, k runs over real tokens",
        "z = z.masked_fill(~mask[:, None, :], -torch.inf)         # not 0, not z * mask, not 1e-9",
        "Every padded place is one more negative of cosine 0: loss and gradient grow with the padding of the batch.",
        hidden_by=("no padding",), seen=2,
    ),
    Deviation(
        "logits.batch_negatives", "negatives from the whole batch",
        "tokens of other captions are negatives as well{way}",
        "eq. 6, k runs over the tokens of the same caption",
        "z = scale * c @ t.mT                  # (B,L,L), not (B*L, B*L)\n"
        "label = torch.arange(L)               # the token's place in its own caption",
        "A word that occurs in two captions becomes its own negative, and the memory grows with (B L)^2. The paper "
        "keeps negatives within a caption on purpose.",
        hidden_by=("B = 1",), seen=3,
    ),
    Deviation(
        "logits.nan_all_masked_rows", "rows that are all masked give NaN",
        "rows of padded tokens give NaN or infinity, which a product with the mask keeps",
        "eq. 6",
        "z = z.masked_fill(~mask[:, None, :], -torch.inf)         # columns only\n"
        "loss = torch.where(mask, ce, 0.0)                        # where, not ce * mask: NaN * 0 is NaN",
        "NaN in the first batch with padding.",
        hidden_by=("no padding",), seen=1,
    ),
    Deviation(
        "logits.temperature_constant", "hard-coded temperature",
        "the temperature of the fine-grained loss is fixed at tau = {value}",
        "eq. 6; one learned tau",
        "scale = theta.exp()                   # theta = log(1/tau), a parameter; init log(1/0.07)",
        "The sharpness cannot adapt; theta gets no gradient from this loss.",
        seen=2,
    ),
    Deviation(
        "logits.directions_swapped", "the two directions are swapped",
        "the two directions are swapped, which the mean of both cancels",
        "eq. 6", "ce(z) + ce(z.mT)                      # optional", "None: the loss is their mean.", harmless=True, seen=2,
    ),
    Deviation(
        "logits.detached", "no gradient through one side of the logits",
        "no gradient flows through {value} in the logits",
        "eq. 6; nothing is detached",
        "z = scale * c @ t.mT                  # without .detach() on either",
        "The loss is right and its gradient is not: one side is a fixed target.",
    ),
    Deviation(
        "loss.one_direction", "one direction only",
        "only the direction {value} counts ({direction}), used twice",
        "eq. 6, two terms",
        "loss = (ce(z) + ce(z.mT)) / 2         # groups pick tokens, tokens pick groups",
        "The other softmax is not trained: tokens may all sit close to one group without any loss.",
        seen=1,
    ),
    Deviation(
        "loss.factor", "the loss is multiplied by a constant",
        "the loss is {value} times eq. 6's",
        "eq. 6, 1/(2B)",
        "loss = (loss_vt + loss_tv) / 2",
        "The same as another lambda_f: the fine-grained loss weighs more, or less, against the global one.",
    ),
    Deviation(
        "reduction.token", "Listing 1: mean over all tokens of the batch",
        "the mean runs over all real tokens of the batch, as in Listing 1, instead of over captions",
        "Listing 1 against eq. 6",
        "loss = (ce * mask).sum(1) / mask.sum(1)                  # eq. 6: each caption its mean\n"
        "loss = loss.mean()                                       # then the batch",
        "Long captions weigh more, and a sample's share depends on its batch. It is the paper's own pseudo-code: a choice.",
        hidden_by=("equal lengths", "no padding", "B = 1"), seen=6,
    ),
    Deviation(
        "reduction.mean_all", "plain mean over B*L",
        "the mean runs over all B*L places, padded rows included",
        "eq. 6, 1/L_i over real tokens",
        "ce = torch.where(mask, ce, 0.0)\n"
        "loss = (ce.sum(1) / mask.sum(1)).mean()",
        "Padded places are trained to find themselves, and make up most of the loss where captions are short.",
        hidden_by=("no padding",), seen=7,
    ),
    Deviation(
        "reduction.masked_over_all", "padding counted in the divisor",
        "padding contributes 0 but is counted: the sum is divided by B*L",
        "eq. 6, 1/L_i over real tokens",
        "ce = torch.where(mask, ce, 0.0)\n"
        "loss = (ce.sum(1) / mask.sum(1)).mean()                  # not ce.mean()",
        "The more padding, the smaller loss and gradient: lambda_f depends on how long the longest caption of a batch is.",
        hidden_by=("no padding",),
    ),
    Deviation(
        "global.pools_normalised", "normalised embeddings are pooled",
        "the global embeddings pool l2-normalised {what}",
        "eq. 1; section 3.1",
        "v_bar = v.mean(1)                     # pool first\n"
        "t_bar = (t * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)\n"
        "z = scale * unit(v_bar) @ unit(t_bar).mT                 # then normalise",
        "Long embeddings count no more than short ones in the pooled vector.",
        seen=1.5,
    ),
    Deviation(
        "global.pools_padding", "padding is pooled",
        "the caption's global embedding is a mean over padding too",
        "eq. 1; mean over real tokens",
        "t_bar = (t * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)",
        "A short caption's embedding is mostly padding, and changes with the batch that it is padded in.",
        hidden_by=("no padding",), seen=1.5,
    ),
    Deviation(
        "global.uses_cls", "[CLS] embeddings for the global loss",
        "the global loss takes the first {what} instead of a mean",
        "eq. 1; section 3.1",
        "v_bar, t_bar = v.mean(1), (t * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)",
        "Patches get no gradient from the global loss directly: what the paper's mean pooling teaches them is lost.",
        seen=1,
    ),
    Deviation(
        "global.temperature_constant", "hard-coded temperature in the global loss",
        "the temperature of the global loss is fixed at tau = {value}",
        "eq. 1; one learned tau", "scale = theta.exp()                   # theta = log(1/tau), a parameter",
        "The sharpness cannot adapt; theta gets no gradient from this loss.",
        seen=1,
    ),
    Deviation(
        "global.one_direction", "one direction of the global loss only",
        "only the direction {value} of the global loss counts ({direction}), used twice",
        "eq. 1, two terms", "loss = (ce(z) + ce(z.mT)) / 2",
        "Retrieval is trained one way only.",
    ),
    Deviation(
        "global.factor", "the global loss is multiplied by a constant",
        "the global loss is {value} times eq. 1's",
        "eq. 1",
        "loss = (ce(z) + ce(z.mT)) / 2",
        "The same as another lambda_g.",
    ),
    Deviation(
        "similarity.epsilon", "epsilon in the patches' l2 norm",
        "an epsilon of {value} is added to the length of the patches in the similarity",
        "", "F.normalize(v, dim=-1)", "None while embeddings are longer than that.", harmless=True,
    ),
    Deviation(
        "weights.epsilon", "epsilon in the sum of the weights",
        "an epsilon of {value} is added to the sum of the weights",
        "eq. 4", "a = s_til / s_til.sum(-1, keepdim=True)", "None: the l2 norm of c cancels it.", harmless=True,
    ),
    Deviation(
        "norm.epsilon", "epsilon in the l2 norm",
        "an epsilon of {value} is added to the lengths of c and t",
        "eq. 6", "F.normalize(c, dim=-1)", "None while embeddings are longer than that.", harmless=True,
    ),
    Deviation(
        "loss.epsilon", "epsilon in the logarithm",
        "an epsilon of {value} is added to the probability before its logarithm",
        "eq. 6", "z.log_softmax(-1)", "None until a probability is as small: then its gradient vanishes.", harmless=True,
    ),
    Deviation(
        "edge.zero_padding", "zero embeddings at padding poison the result",
        "padded embeddings that are exactly zero make the {what} NaN or infinite",
        "eq. 6; padding changes nothing",
        "t = torch.where(mask[..., None], t, 1.0)                 # before the norm: 0/0 has no gradient\n"
        "ce = torch.where(mask, ce, 0.0)",
        "NaN weights after the first update if the text tower, or pad_sequence, puts zeros at padding.",
        hidden_by=("no zero embeddings at padding", "no padding"), seen=10,
    ),
    Deviation(
        "edge.nan_gradient", "finite loss, NaN gradient",
        "the loss is finite and its gradient NaN on {what}",
        "eq. 6",
        "x = torch.where(ok, x, 1.0)           # make the argument harmless before the risky op,\n"
        "y = torch.where(ok, f(x), 0.0)        # not only its result after it",
        "The logged loss looks well while the weights turn NaN in one step.",
        hidden_by=("no flat rows",), seen=4,
    ),
    Deviation(
        "edge.all_padding", "a caption of padding alone poisons the batch",
        "a caption of padding alone {what}",
        "eq. 6; it contributes 0",
        "n = mask.sum(1).clamp_min(1)          # 0/0 for an empty caption\n"
        "loss = (torch.where(mask, ce, 0.0).sum(1) / n).mean()",
        "One empty caption in a data set of millions ends the run, or shifts the loss of its batch.",
        hidden_by=("no caption of padding alone", "no padding"),
    ),
    Deviation(
        "edge.padding_leak", "the content of padding changes the result",
        "what padded tokens hold changes the {what}",
        "eq. 6; real tokens only",
        "z = z.masked_fill(~mask[:, None, :], -torch.inf)\n"
        "ce = torch.where(mask, ce, 0.0)",
        "The loss depends on how the text tower fills padding.",
        hidden_by=("no padding",),
    ),
    Deviation(
        "edge.no_gradient", "no gradient",
        "no gradient reaches {value}",
        "eqs. 1-6; nothing is detached",
        "loss.backward()                       # no .detach(), .data, .item(), numpy() on the way",
        "What gets no gradient is not trained.",
    ),
    Deviation(
        "edge.mutates_inputs", "inputs are changed in place",
        "the call changes its arguments in place: {what}",
        "", "x = x / x.norm(dim=-1, keepdim=True)  # not x /= ...", "A second use of the same tensor sees other numbers.",
    ),
    Deviation(
        "edge.not_deterministic", "two calls, two results",
        "two calls with the same inputs differ",
        "eq. 6 has no randomness",
        "loss_module.eval()                    # or remove dropout and sampling",
        "Noise in the loss; no test of it can be exact.",
    ),
    Deviation(
        "edge.order_dependent", "the order of the samples matters",
        "permuting the batch changes the loss by more than rounding",
        "eq. 6 is a mean over samples", "loss = per_sample.mean()", "Results depend on how the loader shuffles.",
    ),
    Deviation(
        "edge.batch_split", "splitting the batch changes the loss",
        "the mean over two halves of a batch is not the loss of the whole",
        "eq. 6 is a mean over samples",
        "loss = (ce.sum(1) / mask.sum(1)).mean()",
        "Gradient accumulation and the number of devices change the result.",
        hidden_by=("B = 1",),
    ),
    Deviation(
        "edge.low_precision", "half precision fails",
        "in {value} the result is off by more than the inputs' own rounding: {what}",
        "eqs. 1-6 in at least float32",
        "with torch.autocast(device, enabled=False):\n"
        "    loss = sparc_loss(v.float(), t.float(), mask, theta.float())",
        "Noise or NaN under mixed precision.",
    ),
)
