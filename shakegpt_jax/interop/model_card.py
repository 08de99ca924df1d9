"""The model card: README.md of an exported folder, with metadata for the Hugging Face Hub."""

import json
from collections.abc import Iterator
from pathlib import Path

from shakegpt_jax.data.text import TINY_SHAKESPEARE_SHA256
from shakegpt_jax.errors import UserError
from shakegpt_jax.inference import TEMPERATURE
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.model.layers import gpt2_parameters

_METRICS = ("loss", "perplexity", "bits_per_character")

_RESULTS = """\
model-index:
- name: {name}
  results:
  - task:
      type: text-generation
    dataset:
      name: {text}
      type: text
      split: validation
    metrics:
"""

# Of any other text, only its owner knows them.
_TINY_SHAKESPEARE = """\
license: mit
language: en
datasets:
- karpathy/tiny_shakespeare
"""

_CARD = """\
---
{origin}library_name: transformers
pipeline_tag: text-generation
tags:
- character-level
- shakegpt_jax
{results}---

# {title}

A character-level language model: it continues a text, one character after another. It is a
decoder-only Transformer with the architecture of GPT-2, exported from `shakegpt_jax` (JAX, Flax,
Optax).

| | |
|---|---|
{figures}

## Use

```python
from transformers import pipeline

pipe = pipeline(
    "text-generation",
    {folder},
    max_new_tokens={half},
    clean_up_tokenization_spaces=False,  # transformers 4 drops spaces before punctuation otherwise
)
text = {prompt}
print(pipe(text)[0]["generated_text"])
```

By default it samples with temperature {temperature}. Prompt and new characters have to fit into the
window of {window} together, or transformers raises an `IndexError`. For a longer text, continue the
end of it again:

```python
while len(text) < 500:
    text += pipe(text[-{half}:], return_full_text=False)[0]["generated_text"]
print(text)
```

## Limits

- One token is one character (one Unicode code point), of which `tokenizer.json` has {n_character}.
{tokens}
- It imitates {imitated}, with the language and the prejudices in it,
  and may repeat passages verbatim. It knows no facts and follows no instructions. Do not use it to
  inform, to advise or to decide anything about people.
"""

_SPECIAL = """\
- Others become `[UNK]`. Batches are filled with `[PAD]`. `[EOS]` is the end of a text and the
  beginning of the next. The model has not been trained with any of them and never generates them,
  so it stops only at `max_new_tokens`, until it is fine-tuned on texts that end with `[EOS]`."""

_NO_SPECIAL = """\
- Others raise "WordLevel error: Missing [UNK] token". There are no special tokens: a prompt has at
  least one character, generation stops only at `max_new_tokens`, and there is no padding, so a
  batch has prompts of one length, and `pipe` refuses a `batch_size` above 1."""


def model_card(lm: LanguageModel, folder: str, *, special_tokens: bool) -> str:
    """Return the card of the exported folder `folder`: Markdown after YAML metadata."""
    folder = _printable(folder)
    # Names, without the folders of whoever trained the model.
    text = _printable(Path(lm.config.data.path).name) or "Tiny Shakespeare"
    source = _printable(Path(lm.config.train.init_from).name)
    is_known = lm.text_sha256 == TINY_SHAKESPEARE_SHA256 and not source
    results = ""
    if known := [name for name in _METRICS if name in lm.metrics]:
        results = _RESULTS.format(name=_quote(folder), text=_quote(text))
        results += "".join(f"    - type: {n}\n      value: {lm.metrics[n]}\n" for n in known)
    imitated = "its training text" if lm.text_sha256 else "its training text, which is not known"
    if source:
        imitated = f"its training text and that of {_inline(source)}, which it started from"
    figures = _figures(lm, text, source)
    window = lm.config.model.block_size
    half = max(1, window // 2)
    return _CARD.format(
        origin=_TINY_SHAKESPEARE if is_known else "license: unknown\n",
        results=results,
        title=_inline(folder),
        figures="\n".join(f"| {name} | {value} |" for name, value in figures),
        folder=_quote(folder),
        prompt=_quote(_prompt(lm)[:half]),
        temperature=TEMPERATURE,
        window=window,
        tokens=_SPECIAL if special_tokens else _NO_SPECIAL,
        half=half,
        n_character=lm.tokenizer.vocab_size,
        imitated=imitated,
    )


def _figures(lm: LanguageModel, text: str, source: str) -> Iterator[tuple[str, str]]:
    shape, metrics, step = lm.config.model, lm.metrics, lm.step
    if "loss" in metrics:
        error = f" ± {metrics['standard_error']:.4f}" if "standard_error" in metrics else ""
        yield "validation loss", f"{metrics['loss']:.4f}{error} nats/character"
    if "perplexity" in metrics:
        yield "perplexity", f"{metrics['perplexity']:.3f}"
    if "bits_per_character" in metrics:
        yield "bits per character", f"{metrics['bits_per_character']:.4f}"
    if "count" in metrics:
        yield "characters scored", f"{metrics['count']:,}"
    if step is not None and (lm.text_sha256 or step > 1):  # 1 stands for unknown in an import
        yield "training steps", f"{step:,}"
    params = gpt2_parameters(shape, lm.params, "GPT-2").values()
    yield "parameters", f"{sum(each.size for each in params):,}, float32"
    yield "shape", f"{shape.n_layer} layers, {shape.n_head} heads, {shape.n_embd} dimensions"
    yield "window", f"{shape.block_size:,} characters"
    yield "vocabulary", f"{lm.tokenizer.vocab_size:,} characters"
    yield "training text", _inline(text) if lm.text_sha256 else "unknown"
    if lm.text_sha256:
        yield "its SHA-256", f"`{lm.text_sha256}`"
    if source:
        yield "started from", _inline(source)


def _prompt(lm: LanguageModel) -> str:
    try:
        return lm.default_prompt()
    except UserError:  # the training text has moved
        return lm.tokenizer.vocabulary[-1]


def _quote(text: str) -> str:
    """Return a JSON string, which is one in YAML and in Python too."""
    return json.dumps(text, ensure_ascii=False)


def _printable(name: str) -> str:
    """Drop the characters of a file name that YAML forbids, and line breaks."""
    return "".join(c for c in name if c.isprintable())


def _inline(name: str) -> str:
    """Escape a file name for a line of Markdown or a cell of a table."""
    return "".join(f"\\{c}" if c in "\\`*_|<[#" else c for c in name)
