"""SASRec in torch as RecBole trains it: one prefix a row, full softmax at its last position.

The layers are those of `mmsrec_jax.sequential.sasrec`, so that equal weights give equal scores.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class SASRec(nn.Module):
    """weights: those of ours by path, such as `encoder.qkv`."""

    items: torch.Tensor
    positions: torch.Tensor
    encoder_qkv: torch.Tensor
    encoder_out: torch.Tensor
    encoder_up: torch.Tensor
    encoder_up_bias: torch.Tensor
    encoder_down: torch.Tensor
    encoder_down_bias: torch.Tensor
    encoder_norms: torch.Tensor
    encoder_final_norm: torch.Tensor

    def __init__(self, weights: Mapping[str, np.ndarray], heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        for path, value in weights.items():
            self.register_parameter(path.replace(".", "_"), nn.Parameter(torch.tensor(value)))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Items + 1, int[B, L] padded with 0 on the right -> states [B, D] after the last one."""
        length = ids.shape[1]
        x = self.items[ids] * self.items.shape[1] ** 0.5 + self.positions[:length]
        x = functional.dropout(x, self.dropout, self.training)
        for layer in range(len(self.encoder_qkv)):
            x = self._layer(x, layer)
        last = (ids > 0).sum(1) - 1
        return self._norm(x[torch.arange(len(x), device=x.device), last], self.encoder_final_norm)

    def scores(self, ids: torch.Tensor) -> torch.Tensor:
        """[B, items]."""
        return self(ids) @ self.items[1:].T

    def _layer(self, x: torch.Tensor, n: int) -> torch.Tensor:
        rows, length, dim = x.shape
        qkv = self._norm(x, self.encoder_norms[n, 0]) @ self.encoder_qkv[n]
        q, k, v = (
            part.view(rows, length, self.heads, -1).transpose(1, 2) for part in qkv.split(dim, -1)
        )
        dropout = self.dropout if self.training else 0.0
        # Padding is on the right: the causal rule alone keeps it from being seen.
        seen = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        out = seen.transpose(1, 2).reshape(rows, length, dim) @ self.encoder_out[n]
        x = x + functional.dropout(out, self.dropout, self.training)
        h = self._norm(x, self.encoder_norms[n, 1]) @ self.encoder_up[n] + self.encoder_up_bias[n]
        h = (
            functional.gelu(h, approximate="tanh") @ self.encoder_down[n]
            + self.encoder_down_bias[n]
        )
        return x + functional.dropout(h, self.dropout, self.training)

    @staticmethod
    def _norm(x: torch.Tensor, scale_bias: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], scale_bias[0], scale_bias[1], eps=1e-6)


def rank(
    model: SASRec, ids: torch.Tensor, past: torch.Tensor, targets: torch.Tensor, chunk: int = 512
) -> np.ndarray:
    """Ranks int[R] of the targets among all items but those of `past`; ties count against them.

    ids: as in `SASRec`; past: int[R, W] items the user had, -1 is padding.
    """
    model.eval()
    found = []
    with torch.no_grad():
        for start in range(0, len(ids), chunk):
            part = slice(start, start + chunk)
            scores = model.scores(ids[part])
            own = scores.gather(1, targets[part, None])
            had = torch.where(past[part] < 0, targets[part, None], past[part])
            scores = scores.scatter(1, had, float("-inf")).scatter(1, targets[part, None], own)
            found.append((scores >= own).sum(1))
            scores.topk(10, dim=1)  # the lists, as ours keeps them
    return torch.cat(found).cpu().numpy()
