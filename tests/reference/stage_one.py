"""The descent as plainly as it can be written: one request or group, whole sequences, all layers, autograd."""

import torch

from lke_lightning.model.activations import change_output


def descend(
    model, built, *, lr, max_steps, clamp, kl, decay, loss_threshold, extra_steps, site="block", quirks=False,
    hold=None, penalty=None, gradients=None, held=(),
):  # fmt: skip
    """Return (target, steps, losses by step) for one `RequestRows`.

    `hold` is applied to delta after each update, before the norm ball; `penalty` of delta is added to the loss; the
    list `gradients` gets that of each update; outputs `held` stand at other positions.
    """
    network, layer = model.network, model.target_layer
    module = model.architecture.blocks[layer] if site == "block" else model.architecture.matrix(layer)
    delta = torch.zeros(model.architecture.hidden_size, dtype=model.wide_dtype, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=lr)
    initial, essence_before, successes, losses = [], None, 0, []

    def logits_of(row):
        def add(output):
            hidden = output[0] if isinstance(output, tuple) else output
            if not initial:
                initial.append(hidden[0, row.slot].detach().clone())
            moved = hidden.clone()
            moved[0, row.slot] = moved[0, row.slot] + delta
            for position, output in held:
                moved[0, position] = output
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        with change_output(module, add):
            return network(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0]

    for step in range(1, max_steps + 1):
        nlls, firsts = [], []
        for row, target in [*zip(built.contexts, built.targets, strict=True), *built.others]:
            read = logits_of(row)[len(row.ids) - len(target) :].log_softmax(-1)
            nlls.append(-read[range(len(target)), target].mean())
            firsts.append(read.argmax(-1).tolist() == list(target))
        norm = initial[0].norm()
        loss = torch.stack(nlls).mean() + decay * delta.norm() / norm**2
        if built.essence:
            essence = logits_of(built.essence)[built.essence_read].log_softmax(-1)
            essence_before = essence.detach() if essence_before is None else essence_before
            loss = loss + kl * (essence.exp() * (essence - essence_before)).sum()
        if penalty is not None:
            loss = loss + penalty(delta)
        losses.append(loss.item())
        successes += all(firsts[1:] if quirks else firsts)
        done = (extra_steps is not None and successes > extra_steps) or loss < loss_threshold
        if done or step == max_steps:
            return (initial[0] + delta).detach(), step, losses
        optimizer.zero_grad()
        loss.backward()
        if gradients is not None:
            gradients.append(delta.grad.clone())
        optimizer.step()
        with torch.no_grad():
            if hold is not None:
                delta.copy_(hold(delta))
            if delta.norm() > clamp * norm:
                delta.mul_(clamp * norm / delta.norm())
    raise AssertionError("the last step returns")
