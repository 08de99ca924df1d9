"""Serve a model of the shape of configs/base.py with random weights: a program to measure."""

import jax

from shakegpt_jax.cli.command import run_command, use_compilation_cache
from shakegpt_jax.configs import load_config
from shakegpt_jax.data.text import tiny_shakespeare
from shakegpt_jax.data.tokenizer import CharTokenizer
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.model.gpt import GPT, init_params
from shakegpt_jax.serving.engine import Engine
from shakegpt_jax.serving.server import bind, run_server


def main() -> None:
    use_compilation_cache()
    config = load_config("base").freeze()
    tokenizer = CharTokenizer.from_text(tiny_shakespeare())
    model = GPT(config.model, tokenizer.vocab_size)
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
    lm = LanguageModel(model, params, tokenizer, config, "")
    engine = Engine(lm, max_batch=64, max_queue=0)
    with bind("127.0.0.1", 0) as bound:
        run_server(engine, bound, hosts=[], origins=[], grace=0)


run_command(main)
