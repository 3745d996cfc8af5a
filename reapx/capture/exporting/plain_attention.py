"""PyTorch's multi-head attention in plain operators, head by head.

``nn.MultiheadAttention`` fixes the width of all heads together as that of its inputs, so it cannot have fewer heads.
The module here has the same parameters and the same forward(), takes any number of heads, and is what is captured.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .shadows import shadow


class PlainAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` with any number of heads of ``head_dim`` each; it is made by :func:`become_plain`.

    Attributes:
        num_heads: Heads that are left.
        head_dim: Size of each.
        embed_dim: Width of the inputs and outputs.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention.forward``. A mask for each head, (images * heads, L, S), is for those left."""
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask: give the mask as well")
        together = key is query and value is query
        single = query.dim() == 2
        if single:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        parts = self._projected(query) if together else self._separate(query, key, value)
        queries, keys, values = (self._heads(part) for part in parts)
        mask = self._mask(query, attn_mask, key_padding_mask)
        result, weights = self._attend(queries, keys, values, mask, need_weights)
        result = self.out_proj(result.transpose(1, 2).reshape(*query.shape[:2], self.num_heads * self.head_dim))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if single:
            return result.squeeze(0), None if weights is None else weights.squeeze(0)
        return result if self.batch_first else result.transpose(0, 1), weights

    def _projected(self, query: Tensor) -> list[Tensor]:
        """Queries, keys and values of the same input, (images, length, heads * size) each."""
        if self.in_proj_weight is None:
            return self._separate(query, query, query)
        return list(F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1))

    def _separate(self, *inputs: Tensor) -> list[Tensor]:
        weights: tuple[Tensor, ...] = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [F.linear(*each) for each in zip(inputs, weights, biases, strict=True)]

    def _heads(self, value: Tensor) -> Tensor:
        return value.reshape(*value.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        rate = self.dropout if self.training else 0.0
        if not need_weights:
            return F.scaled_dot_product_attention(query, key, value, mask, rate), None
        scores = query * self.head_dim**-0.5 @ key.transpose(-2, -1)
        weights = (scores if mask is None else scores + mask).softmax(-1)
        if rate > 0:
            weights = F.dropout(weights, rate)
        return weights @ value, weights

    def _mask(self, query: Tensor, attention: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """What is added to the scores, (images, heads, L, S) or smaller along the first two axes."""
        parts = []
        if attention is not None:
            shape = (1, 1) if attention.dim() == 2 else (len(query), self.num_heads)
            parts.append(_additive(attention, query).reshape(*shape, *attention.shape[-2:]))
        if padding is not None:
            parts.append(_additive(padding, query)[:, None, None, :])
        return None if not parts else parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask that is added: of truth values, the true ones are left out."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def can_be_plain(module: nn.Module) -> bool:
    """Whether a module is PyTorch's own multi-head attention, without rows that it adds to the keys and values."""
    return type(module) is nn.MultiheadAttention and module.bias_k is None and not module.add_zero_attn


def become_plain(module: nn.Module) -> None:
    """Turn PyTorch's multi-head attention into :class:`PlainAttention`, in place."""
    module.__class__ = PlainAttention
    # nn.TransformerEncoderLayer then takes no fused kernel, which would ignore forward().
    module.__dict__["_qkv_same_embed_dim"] = False


def with_plain_attention(model: nn.Module) -> nn.Module:
    """The model; where it has PyTorch's attention, a copy of its modules with plain attention and the same tensors."""
    if not any(can_be_plain(module) for module in model.modules()):
        return model
    plain = shadow(model)
    for module in list(plain.modules()):
        if can_be_plain(module):
            become_plain(module)
    return plain
