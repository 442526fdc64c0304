"""What the processes of test_trainer_ranks.py are told to run, faults included."""

import time

from parity.trainer import distributed, ranks


def everything(arrays, options):
    """cases_over_ranks' target: the fault that a case's label names is planted; a rank without a sample is refused by all."""
    out = {}
    assert complaint([3, 0]) == "batch: expected at least one sample on every rank, got [3, 0]"
    for label, case in options["cases"].items():
        kept = {}
        for owner, name, value in FAULTS.get(label, FAULTS["none"])():
            kept[owner, name] = getattr(owner, name)
            setattr(owner, name, value)
        out |= ranks.losses(arrays, options | {"cases": {label: case}})
        for (owner, name), value in kept.items():
            setattr(owner, name, value)
    return out


def gradient_times_world():
    """Gradients are added up where their mean is wanted."""
    honest = distributed.mean_gradients

    def total(model, group=None):
        honest(model, group)
        for p in model.parameters():
            p.grad *= distributed.place(group)[1]

    yield distributed, "mean_gradients", total


def gathered_without_gradient():
    """What open_clip does without gather_with_grad, less the row of one's own."""
    honest = distributed.gather
    yield distributed, "gather", lambda x, sizes, group=None: honest(x, sizes, group).detach()


def own_gradient_alone():
    """gather's backward hands back what this rank asked of its own samples, and forgets what the others asked."""
    def backward(ctx, dy):
        start = sum(ctx.sizes[: distributed.place(ctx.group)[0]])
        return dy[start : start + ctx.sizes[distributed.place(ctx.group)[0]]], None, None

    yield distributed._Gather, "backward", staticmethod(backward)


def tokens_of_one_rank():
    """The token reduction divides by this rank's number of tokens."""
    honest = distributed.total
    yield distributed, "total", lambda x, group=None: honest(x, group) if x.requires_grad else x * distributed.place(group)[1]


FAULTS = {
    "none": lambda: (),
    "gradient times world": gradient_times_world,
    "gathered without gradient": gathered_without_gradient,
    "own gradient alone": own_gradient_alone,
    "tokens of one rank": tokens_of_one_rank,
}


def complaint(sizes):
    """What this rank says when the ranks hold so many samples."""
    import torch

    rank, _ = distributed.place()
    try:
        distributed.batch_sizes(sizes[rank], torch.device("cpu"))
    except ValueError as error:
        return str(error)
    return "nothing"


def fail(arrays, options):
    if distributed.place()[0] == 1:
        raise ValueError("it was the second rank, and it held " + ", ".join(map(str, arrays["x"])))
    time.sleep(60)


def sleep(arrays, options):
    time.sleep(60)
