"""Exponential moving averages of weights: the teacher (§3.3) and the saved generators (§4.2)."""

from copy import deepcopy

import torch


class EMA:
    """Eq. 13: w ← α w + (1 - α) w_student. `model` holds the average: a copy in eval mode, without gradients.

    α = min(decay, (1 + k) / (10 + k)) at the k-th update, so that a short run soon forgets its random start. α reaches
    0.999 after 8,990 updates and 0.9999 after 89,990. Buffers are copied.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        frozen = {id(p): p for p in model.parameters() if not p.requires_grad}  # shared instead of copied
        self.model = deepcopy(model, frozen).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, student: torch.nn.Module, k: int) -> None:
        """The k-th update, k from 0: an int, or a 0-d tensor that a CUDA graph reads at each replay.

        Raises `ValueError` if the student has other parameters or shapes.
        """
        ours, theirs = dict(self.model.named_parameters()), dict(student.named_parameters())
        if {name: w.shape for name, w in ours.items()} != {name: w.shape for name, w in theirs.items()}:
            raise ValueError("the student's parameters are not those of its average")
        averages, new = list(ours.values()), [theirs[name].detach() for name in ours]
        if isinstance(k, torch.Tensor):
            changes = torch._foreach_sub(new, averages)
            torch._foreach_mul_(changes, (9 / (10 + k)).clamp(min=1 - self.decay))
            torch._foreach_add_(averages, changes)
        else:
            torch._foreach_lerp_(averages, new, 1 - min(self.decay, (1 + k) / (10 + k)))
        for ours, theirs in zip(self.model.buffers(), student.buffers(), strict=True):
            ours.copy_(theirs)
