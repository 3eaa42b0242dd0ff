"""The networks of hdd-node in PyTorch, as one writes them there: the yardstick of the benchmarks.

Parameters have the names that hdd-node's files give them.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def position_table(width, side):
    """Fixed sin-cos embedding of a square, (1, N, D): channels of the column first, then those of the row."""
    frequency = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64).outer(frequency)
    line = torch.cat([angle.sin(), angle.cos()], 1)  # (side, D / 2)
    column, row = line.repeat(side, 1), line.repeat_interleave(side, 0)
    return torch.cat([column, row], 1).float().unsqueeze(0)


def modulate(x, shift, scale):
    return x * (1 + scale) + shift


class PatchEmbed(nn.Module):
    def __init__(self, channels, width, patch):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class TimestepEmbed(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        frequency = torch.exp(-math.log(10000.0) * torch.arange(128) / 128)
        self.register_buffer("frequency", frequency, persistent=False)

    def forward(self, time):
        angle = time[:, None] * self.frequency
        return self.mlp(torch.cat([angle.cos(), angle.sin()], -1))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x, text):
        q = self.q_linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv_linear(text).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.norm = nn.LayerNorm(a["width"], eps=a["norm_epsilon"], elementwise_affine=False)
        self.attn = Attention(a["width"], a["heads"])
        self.cross_attn = CrossAttention(a["width"], a["heads"])
        self.mlp = Mlp(a["width"])
        self.scale_shift_table = nn.Parameter(torch.randn(6, a["width"]) / a["width"] ** 0.5)

    def forward(self, x, text, modulation):
        m = (self.scale_shift_table + modulation).unsqueeze(2).unbind(1)
        x = x + m[2] * self.attn(modulate(self.norm(x), m[0], m[1]))
        x = x + self.cross_attn(self.norm(x), text)
        return x + m[5] * self.mlp(modulate(self.norm(x), m[3], m[4]))


class FinalLayer(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.norm = nn.LayerNorm(a["width"], eps=a["norm_epsilon"], elementwise_affine=False)
        self.linear = nn.Linear(a["width"], a["patch"] ** 2 * a["channels"])
        self.scale_shift_table = nn.Parameter(torch.randn(2, a["width"]) / a["width"] ** 0.5)

    def forward(self, x, time):
        shift, scale = (self.scale_shift_table + time.unsqueeze(1)).unsqueeze(2).unbind(1)
        return self.linear(modulate(self.norm(x), shift, scale))


class Expert(nn.Module):
    """Text-conditioned DiT with AdaLN-Single; `a` is an architecture as hdd-node writes it."""

    def __init__(self, a, recompute=False):
        super().__init__()
        self.a, self.recompute = a, recompute
        self.x_embedder = PatchEmbed(a["channels"], a["width"], a["patch"])
        self.t_embedder = TimestepEmbed(a["width"])
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(a["width"], 6 * a["width"]))
        self.text_proj = nn.Linear(a["text_width"], a["width"])
        self.null_embedding = nn.Parameter(torch.randn(a["text_length"], a["text_width"]) / a["text_width"] ** 0.5)
        self.blocks = nn.ModuleList(Block(a) for _ in range(a["depth"]))
        self.final_layer = FinalLayer(a)
        self.register_buffer("position", position_table(a["width"], a["size"] // a["patch"]), persistent=False)

    def forward(self, x, t, text):
        """x (B, C, H, W), t (B) in [0, 1], text (B, L, W); shaped as x."""
        time = self.t_embedder(self.a["time_scale"] * t)
        modulation = self.t_block(time).unflatten(1, (6, -1))
        text = self.text_proj(text)
        h = self.x_embedder(x) + self.position
        for block in self.blocks:
            if self.recompute:
                h = checkpoint(block, h, text, modulation, use_reentrant=False)
            else:
                h = block(h, text, modulation)
        h = self.final_layer(h, time)
        patch, side = self.a["patch"], self.a["size"] // self.a["patch"]
        h = h.unflatten(1, (side, side)).unflatten(3, (patch, patch, -1))
        return h.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)


class RouterBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, time):
        m = self.adaLN_modulation(time).unsqueeze(1).chunk(6, -1)
        x = x + m[2] * self.attn(modulate(self.norm(x), m[0], m[1]))
        return x + m[5] * self.mlp(modulate(self.norm(x), m[3], m[4]))


class Router(nn.Module):
    """Text-free DiT with AdaLN-Zero and a class token; `r` is a router's recipe, `a` the experts' architecture."""

    def __init__(self, r, a, clusters):
        super().__init__()
        width = r["width"]
        self.x_embedder = PatchEmbed(a["channels"], width, r["patch"])
        self.t_embedder = TimestepEmbed(width)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.blocks = nn.ModuleList(RouterBlock(width, r["heads"]) for _ in range(r["depth"]))
        gelu = nn.GELU(approximate="tanh")
        self.head = nn.Sequential(nn.Linear(width, width), gelu, nn.LayerNorm(width), gelu, nn.Linear(width, clusters))
        self.register_buffer("position", position_table(width, a["size"] // r["patch"]), persistent=False)

    def forward(self, x, t):
        """Logits over the clusters, (B, K)."""
        time = self.t_embedder(999.0 * t)
        h = torch.cat([self.cls_token.expand(len(x), -1, -1), self.x_embedder(x) + self.position], 1)
        for block in self.blocks:
            h = block(h, time)
        return self.head(h[:, 0])
