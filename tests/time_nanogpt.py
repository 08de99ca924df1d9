"""Time train steps of nanoGPT on this machine, for tests/gpu_session.sh.

    python tests/time_nanogpt.py FOLDER CONFIG [COMPILE]

FOLDER has nanoGPT's model.py; the shape is that of CONFIG. Prints the median of 5 x 20 steps in ms.
Needs torch.
"""

import statistics
import sys
import time

import torch

sys.path.insert(0, sys.argv[1])
from model import GPT, GPTConfig  # nanoGPT's

from shakegpt_jax.configs import load_config


def main() -> None:
    config, compiled = load_config(sys.argv[2]), sys.argv[3:] == ["compile"]
    shape, device = config.model, "cuda" if torch.cuda.is_available() else "cpu"
    sizes = {name: getattr(shape, name) for name in ("n_layer", "n_head", "n_embd", "block_size")}
    model = GPT(GPTConfig(**sizes, vocab_size=65, dropout=shape.dropout, bias=False)).to(device)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), device)
    forward = torch.compile(model) if compiled else model
    batch = torch.randint(65, (2, config.data.batch_size, shape.block_size), device=device)

    def steps(n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            with torch.autocast(device, torch.bfloat16):
                _, loss = forward(*batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        loss.item()
        return (time.perf_counter() - start) / n

    steps(5)
    ms = 1000 * statistics.median(steps(20) for _ in range(5))
    print(f"nanoGPT, {sys.argv[2]}, {'compiled' if compiled else 'eager'}: {ms:.2f} ms per step")


main()
