"""Muon for the matrices of the layers, AdamW for everything else, as one optimizer.

Muon makes every update of a matrix orthogonal (K. Jordan and others, "Muon: An optimizer for hidden layers in neural
networks", 2024), so that small directions are learnt as fast as large ones. Measured on the symbols' stage, "color" of
one shape among two or three reached 0.85 with it in the steps in which AdamW reached 0.69.
"""

import torch

_HIDDEN = (".layers.", "mlp1.")


class Together(torch.optim.Optimizer):
    """Several optimizers, each for its own parameters, stepped, saved and restored as one."""

    def __init__(self, parts):
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share_groups()

    def _share_groups(self):
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure=None):
        if closure is not None:
            raise ValueError("closures are not supported")
        for part in self.parts:
            part.step()

    def state_dict(self):
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict):
        for part, state in zip(self.parts, state_dict["parts"]):
            part.load_state_dict(state)
        self._share_groups()


def make_optimizer(model, learning_rate, weight_decay) -> Together:
    """The optimizer for what `model` trains now. Both parts take the same learning rate: Muon's steps are scaled to
    the size of AdamW's; vectors (norms, biases, scales) are not decayed."""
    matrices, tables, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            hidden = parameter.ndim == 2 and any(part in name for part in _HIDDEN)
            (matrices if hidden else tables if parameter.ndim > 1 else vectors).append(parameter)
    groups = [dict(params=tables, weight_decay=weight_decay), dict(params=vectors, weight_decay=0.0)]
    parts = [torch.optim.AdamW([group for group in groups if group["params"]], learning_rate, betas=(0.9, 0.98))]
    if matrices:
        muon = torch.optim.Muon(matrices, learning_rate, weight_decay, adjust_lr_fn="match_rms_adamw")
        parts.append(muon)
    return Together(parts)
