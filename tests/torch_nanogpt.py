"""nanoGPT's model in torch, as a reference."""

from typing import Any


def torch_nanogpt(n_character: int, *, bias: bool) -> Any:
    """Return nanoGPT's model of 2024 in torch, written anew: the reference."""
    import torch
    from torch import nn
    from torch.nn import functional

    class LayerNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(32))
            self.bias = nn.Parameter(torch.zeros(32)) if bias else None

        def forward(self, x):
            return functional.layer_norm(x, (32,), self.weight, self.bias, 1e-5)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c_attn = nn.Linear(32, 96, bias=bias)
            self.c_proj = nn.Linear(32, 32, bias=bias)
            self.register_buffer("bias", torch.tril(torch.ones(16, 16)).view(1, 1, 16, 16))

        def forward(self, x):
            n_row, n_time, _ = x.shape
            parts = self.c_attn(x).split(32, dim=2)
            q, k, v = (part.view(n_row, n_time, 4, 8).transpose(1, 2) for part in parts)
            scores = q @ k.transpose(-2, -1) / 8**0.5
            scores = scores.masked_fill(self.bias[:, :, :n_time, :n_time] == 0, -torch.inf)
            y = scores.softmax(-1) @ v
            return self.c_proj(y.transpose(1, 2).reshape(n_row, n_time, 32))

    class MLP(nn.Sequential):
        def __init__(self) -> None:
            super().__init__()
            self.c_fc = nn.Linear(32, 128, bias=bias)
            self.gelu = nn.GELU()
            self.c_proj = nn.Linear(128, 32, bias=bias)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.attn, self.ln_2, self.mlp = LayerNorm(), Attention(), LayerNorm(), MLP()

        def forward(self, x):
            x = x + self.attn(self.ln_1(x))
            return x + self.mlp(self.ln_2(x))

    class NanoGPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = nn.ModuleDict(
                {
                    "wte": nn.Embedding(n_character, 32),
                    "wpe": nn.Embedding(16, 32),
                    "h": nn.ModuleList([Block() for _ in range(2)]),
                    "ln_f": LayerNorm(),
                }
            )
            self.lm_head = nn.Linear(32, n_character, bias=False)
            self.transformer.wte.weight = self.lm_head.weight

        def forward(self, ids):
            x = self.transformer.wte(ids) + self.transformer.wpe(torch.arange(ids.shape[1]))
            for block in self.transformer.h:
                x = block(x)
            return self.lm_head(self.transformer.ln_f(x))

    torch.manual_seed(0)
    return NanoGPT()
