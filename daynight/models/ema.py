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
        """The k-th update, k from 0. Raises `ValueError` if the student has other parameters or shapes."""
        ours, theirs = dict(self.model.named_parameters()), dict(student.named_parameters())
        if {name: w.shape for name, w in ours.items()} != {name: w.shape for name, w in theirs.items()}:
            raise ValueError("the student's parameters are not those of its average")
        alpha = min(self.decay, (1 + k) / (10 + k))
        torch._foreach_lerp_(list(ours.values()), [theirs[name].detach() for name in ours], 1 - alpha)
        for ours, theirs in zip(self.model.buffers(), student.buffers(), strict=True):
            ours.copy_(theirs)
