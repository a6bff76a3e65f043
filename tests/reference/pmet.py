"""PMET's joint descent as plainly as it can be written: one request, whole sequences, all layers, autograd."""

import torch

from lke_lightning.model.activations import change_output


def descend_jointly(model, built, *, lr, max_steps, clamp, kl, decay, loss_threshold, kept):
    """Return (target, steps, losses by step, the attention's change) for one `RequestRows`.

    The MLP's target is written, the attention's change helps; `kept` bounds the weighted KL.
    """
    layer, network = model.target_layer, model.network
    places = {"mlp": model.architecture.matrix(layer), "attention": model.architecture.attention_matrix(layer)}
    deltas = {
        name: torch.zeros(model.architecture.hidden_size, dtype=model.wide_dtype, requires_grad=True) for name in places
    }
    optimizer = torch.optim.Adam(deltas.values(), lr=lr)
    initial, essence_before, factor, losses = {}, None, 1.0, []

    def logits_of(row):
        def adding(name):
            def add(hidden):
                initial.setdefault(name, hidden[0, row.slot].detach().clone())
                moved = hidden.clone()
                moved[0, row.slot] = moved[0, row.slot] + deltas[name]
                return moved

            return add

        with change_output(places["mlp"], adding("mlp")), change_output(places["attention"], adding("attention")):
            return network(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0]

    for step in range(1, max_steps + 1):
        nlls, firsts = [], []
        for row, target in zip(built.contexts, built.targets, strict=True):
            read = logits_of(row)[len(row.ids) - len(target) :].log_softmax(-1)
            nlls.append(-read[range(len(target)), target].mean())
            firsts.append(read.argmax(-1).tolist() == list(target))
        divergence = torch.zeros(())
        if built.essence:
            essence = logits_of(built.essence)[built.essence_read].log_softmax(-1)
            essence_before = essence.detach() if essence_before is None else essence_before
            divergence = kl * (essence.exp() * (essence - essence_before)).sum()
        penalty = sum(decay * deltas[name].norm() / initial[name].norm() ** 2 for name in places)
        loss = factor * torch.stack(nlls).mean() + divergence + penalty
        losses.append(loss.item())
        if loss < loss_threshold or (all(firsts) and divergence <= kept) or step == max_steps:
            return (initial["mlp"] + deltas["mlp"]).detach(), step, losses, deltas["attention"].detach()
        factor = 0.1 if all(firsts) else 1.0
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for name, delta in deltas.items():
                longest = clamp * initial[name].norm()
                if delta.norm() > longest:
                    delta.mul_(longest / delta.norm())
    raise AssertionError("the last step returns")
