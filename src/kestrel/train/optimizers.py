# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What moves the weights of a network in a training."""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor, nn

OptimizerName = Literal["adamw", "muon"]

BETAS: Final = (0.9, 0.999)


def hidden_matrices(network: nn.Module) -> list[Tensor]:
    """Return the weights that Muon is for: trained convolutions that mix channels and answer nothing.

    Those have no bias, since a normalisation follows; a layer that answers has one.
    """
    return [
        layer.weight
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        and layer.bias is None
        and layer.groups == 1
        and layer.weight.requires_grad
    ]


def build_optimizer(
    name: OptimizerName, network: nn.Module, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return an optimizer of all trained parameters.

    "muon" moves hidden matrices along the orthogonalised momentum (Jordan et al., 2024), in steps as large as
    AdamW's would be (Liu et al., 2025, arXiv 2502.16982, section 2.2), and all else as "adamw" does.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if name == "adamw":
        return torch.optim.AdamW(trained, lr=lr, betas=BETAS, weight_decay=weight_decay)
    # It brings a hundred optimizers, which take seconds to import.
    from pytorch_optimizer import Muon

    matrices = hidden_matrices(network)
    known = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in trained if id(parameter) not in known]
    common = {"lr": lr, "weight_decay": weight_decay}
    return Muon(
        [
            {"params": matrices, "use_muon": True, "use_adjusted_lr": True, **common},
            {"params": others, "use_muon": False, "betas": BETAS, "eps": 1e-8, **common},
        ]
    )
