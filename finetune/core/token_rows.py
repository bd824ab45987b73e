"""The rows of a placeholder in a text encoder's embedding table, trained while all else of it stays frozen."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel

from finetune.core.trainables import copy_strictly
from pipelines.embeddings import Placeholder


class TokenRows:
    """A placeholder's rows (Gal et al. 2022) as a parameter of their own, float32 in a text encoder of any precision.

    A hook on the token embedding puts them in the place of the table's rows, cast inside the graph, wherever the
    placeholder is read: in training, and in every pipeline that shares the text encoder, which is on its device
    already. The table and all other weights are frozen; they keep their bits, as the optimizer never sees them.
    """

    name = "token_rows"

    def __init__(self, text_encoder: CLIPTextModel, placeholder: Placeholder) -> None:
        self.module: nn.Module = text_encoder
        text_encoder.requires_grad_(False)
        self._embedding = text_encoder.get_input_embeddings()
        device = self._embedding.weight.device
        self.ids = list(placeholder.ids)
        self._ids = torch.tensor(placeholder.ids, device=device)
        self._initial = placeholder.initial.to(device, torch.float32)
        self._rows = nn.Parameter(self._initial.clone())
        self._embedding.register_forward_hook(self._put_in_place)

    @property
    def rows(self) -> Tensor:
        """The rows as they are now, (num_vectors, width) float32, outside any graph."""
        return self._rows.detach()

    def distance(self) -> float:
        """Return the mean Euclidean distance of the rows from where they started."""
        return float((self.rows - self._initial).norm(dim=1).mean())

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return {"rows": self._rows}

    def after_step(self, step: int) -> None:
        """Nothing: no other row was touched, so none is put back."""

    def state(self) -> dict[str, Tensor]:
        return {"rows": self.rows}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        copy_strictly(self.name, self.state(), tensors)

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy the rows into the embedding table, for a text encoder that is saved whole or read without the hook."""
        table = self._embedding.weight
        table[self._ids] = self._rows.to(table)

    def _put_in_place(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        matches = inputs[0].unsqueeze(-1) == self._ids  # (B, tokens, num_vectors)
        # a lookup, not a matrix product: autocast would round the rows
        replaced = nn.functional.embedding(matches.int().argmax(dim=-1), self._rows).to(output.dtype)
        return torch.where(matches.any(dim=-1, keepdim=True), replaced, output)
