"""What tells the weights of one network from those of another."""

from __future__ import annotations

import hashlib

from torch import nn


def weights_fingerprint(module: nn.Module) -> str:
    """Return a hash of a network's weights, the same wherever they are."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
