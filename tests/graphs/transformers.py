"""Attention in the ways in which people write it, inside a small transformer."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS = 24, 4


class Joint(nn.Module):
    """Queries, keys and values from one layer, as in vision transformers; ``how`` says how they are taken apart."""

    def __init__(self, how: str = "unbind") -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = HEADS, WIDTH // HEADS, WIDTH
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        images, tokens, _ = x.shape
        joint = self.qkv(x)
        if self.how == "chunk":
            q, k, v = (part.view(images, tokens, self.num_heads, -1).transpose(1, 2) for part in joint.chunk(3, -1))
        elif self.how == "split":
            parts = joint.split(self.attn_dim, -1)
            q, k, v = (part.view(images, tokens, -1, self.head_dim).transpose(1, 2) for part in parts)
        else:
            q, k, v = joint.reshape(images, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        if self.how == "softmax":
            mixed = (q * self.head_dim**-0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(images, tokens, self.attn_dim))


class Tables(nn.Module):
    """A table of positions for each head, a mask, norms of queries and keys, and biases joined in forward()."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(WIDTH))
        self.register_buffer("k_bias", torch.zeros(WIDTH), persistent=False)
        self.q_norm, self.k_norm = nn.LayerNorm(WIDTH // HEADS), nn.LayerNorm(WIDTH // HEADS)
        self.table = nn.Parameter(torch.randn(13, HEADS))
        self.register_buffer("index", (torch.arange(7)[:, None] - torch.arange(7) + 6).flatten())

    def forward(self, x: Tensor) -> Tensor:
        images, tokens, _ = x.shape
        joint = F.linear(x, self.qkv.weight, torch.cat([self.q_bias, self.k_bias, self.v_bias]))
        q, k, v = joint.reshape(images, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = self.q_norm(q) @ self.k_norm(k).transpose(-2, -1)
        scores = scores + self.table[self.index].view(7, 7, -1).permute(2, 0, 1).unsqueeze(0)
        scores = scores + torch.zeros(7, 7).masked_fill(torch.ones(7, 7).triu(1).bool(), -1e9)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(images, tokens, -1))


class Grouped(nn.Module):
    """Two heads of the queries share one of the keys and values; rotary positions."""

    def __init__(self, how: str = "expand") -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim, self.how = HEADS, HEADS // 2, WIDTH // HEADS, how
        self.q_proj, self.o_proj = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.k_proj = nn.Linear(WIDTH, self.num_kv_heads * self.head_dim)
        self.v_proj = nn.Linear(WIDTH, self.num_kv_heads * self.head_dim)
        angles = torch.arange(7.0)[:, None] * torch.tensor([1.0, 0.3, 0.1]).repeat(2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, x: Tensor) -> Tensor:
        images, tokens, _ = x.shape
        q = self._rotated(self.q_proj(x).view(images, tokens, self.num_heads, self.head_dim).transpose(1, 2))
        k, v = (
            layer(x).view(images, tokens, self.num_kv_heads, self.head_dim).transpose(1, 2)
            for layer in (self.k_proj, self.v_proj)
        )
        k, count = self._rotated(k), self.num_heads // self.num_kv_heads
        if self.how == "gqa":
            mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        elif self.how == "interleave":
            mixed = F.scaled_dot_product_attention(q, k.repeat_interleave(count, 1), v.repeat_interleave(count, 1))
        else:
            mixed = F.scaled_dot_product_attention(q, *(self._expanded(part, count) for part in (k, v)))
        return self.o_proj(mixed.transpose(1, 2).reshape(images, tokens, -1))

    def _rotated(self, value: Tensor) -> Tensor:
        half = self.head_dim // 2
        turned = torch.cat([-value[..., half:], value[..., :half]], -1)
        return value * self.cos + turned * self.sin

    def _expanded(self, value: Tensor, count: int) -> Tensor:
        images, heads, tokens, size = value.shape
        return value[:, :, None].expand(images, heads, count, tokens, size).reshape(images, -1, tokens, size)


class Torch(nn.Module):
    """PyTorch's own attention of one input."""

    def __init__(self, weights: bool = False, *, batch_first: bool = True, mask: bool = False) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first)
        self.weights, self.mask = weights, mask

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.attend.batch_first else x.transpose(0, 1)
        mask = torch.ones(7, 7).triu(1).bool() if self.mask else None
        result = self.attend(x, x, x, need_weights=self.weights, attn_mask=mask)[0]
        return result if self.attend.batch_first else result.transpose(0, 1)


class Transformer(nn.Module):
    """One block of attention and a feed-forward network, both with a norm before and a shortcut around."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 5)
        self.norm1, self.norm2, self.attention = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), attention
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.attention(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


class Encoder(nn.Module):
    """PyTorch's own encoder of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 5)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.stem(x)).mean(1))


CASES: dict[str, Callable[[], nn.Module]] = {
    "unbind": lambda: Transformer(Joint()),
    "chunk": lambda: Transformer(Joint("chunk")),
    "split": lambda: Transformer(Joint("split")),
    "softmax": lambda: Transformer(Joint("softmax")),
    "tables": lambda: Transformer(Tables()),
    "expand": lambda: Transformer(Grouped()),
    "gqa": lambda: Transformer(Grouped("gqa")),
    "interleave": lambda: Transformer(Grouped("interleave")),
    "torch": lambda: Transformer(Torch()),
    "torch weights": lambda: Transformer(Torch(weights=True)),
    "torch sequence first": lambda: Transformer(Torch(batch_first=False)),
    "torch mask": lambda: Transformer(Torch(mask=True)),
    "encoder": Encoder,
}
"""Networks for images of shape (7, 8)."""


def built(name: str) -> tuple[nn.Module, Tensor]:
    """A network in eval mode, and images for it."""
    torch.manual_seed(0)
    return CASES[name]().eval(), torch.randn(60, 7, 8)
