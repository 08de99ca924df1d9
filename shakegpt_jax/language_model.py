"""A trained model as a Python object: load it, let it write, ask it for probabilities."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import jax
import numpy as np

from shakegpt_jax import evaluate as evaluation
from shakegpt_jax import sampler, sharding
from shakegpt_jax.checkpoint import Checkpoints
from shakegpt_jax.config import Config
from shakegpt_jax.data import CharTokenizer
from shakegpt_jax.errors import DamagedError, UserError
from shakegpt_jax.model import GPT, init_params
from shakegpt_jax.run_info import find_run

_MAX_TEMPERATURE = 1e6  # beyond, every character is as probable as any other

Prompt = TypeVar("Prompt", str, list[str])


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A model with its parameters and its tokenizer; `shakegpt_jax.load` makes one."""

    model: GPT
    params: Any  # pytree of float32 arrays
    tokenizer: CharTokenizer
    config: Config
    text_sha256: str  # of the text it was trained on, in UTF-8
    checkpoint: Path | None = None  # where it was loaded from

    def generate(
        self,
        prompt: Prompt,
        max_new_tokens: int = 500,
        *,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | Sequence[int] = 0,
        window_stride: int | None = None,
    ) -> Prompt:
        """Write on from a prompt, or from each of several in one batch.

        Each prompt's text is the one that it would get alone.

        Args:
            prompt: one text or several, of any lengths from 1.
            max_new_tokens: characters to write for each.
            temperature: divides the logits; 0 takes the most probable character.
            top_k: choose among the k most probable; None: all.
            top_p: choose among the fewest whose probabilities reach p (Holtzman et al. 2020).
            seed: decides the draws; one for every prompt, or one each.
            window_stride: characters dropped when the model's window is full; 1 is exact and
                slow, None drops half of it.

        Returns:
            The prompt and its continuation; a list of them for a list.

        Raises:
            UserError: if a prompt is empty or has characters outside the vocabulary, or an
                option is out of its range.
        """
        _require(
            isinstance(prompt, str | list | tuple), "prompt", prompt, "a text or a list of them"
        )
        prompts = [prompt] if isinstance(prompt, str) else prompt
        chunks = self.stream(
            prompts,
            max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            window_stride=window_stride,
        )
        texts = ["".join(row) for row in zip(prompts, *chunks, strict=True)]
        return texts[0] if isinstance(prompt, str) else texts

    def stream(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 500,
        *,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | Sequence[int] = 0,
        window_stride: int | None = None,
    ) -> Iterator[list[str]]:
        """Write on from each prompt, handing over the characters as they are written.

        Arguments and errors are those of `generate`, with a list of prompts.

        Yields:
            One new piece of text per prompt.
        """
        are_texts = isinstance(prompts, list | tuple) and all(isinstance(p, str) for p in prompts)
        _require(are_texts, "prompts", prompts, "a list of texts")
        _require(len(prompts) > 0, "prompts", prompts, "one text or more")
        _require(all(prompts), "prompt", "", "one character or more")
        n_time = self.config.model.block_size
        # The default keeps n_time // 2 characters, the last one written among them.
        stride = min(n_time, n_time - n_time // 2 + 1) if window_stride is None else window_stride
        seeds = [*seed] if isinstance(seed, Sequence | np.ndarray) else [seed] * len(prompts)
        _require_whole("max_new_tokens", max_new_tokens, 1)
        is_number = isinstance(temperature, int | float | np.number) and temperature >= 0
        _require(
            is_number and temperature <= _MAX_TEMPERATURE,
            "temperature",
            temperature,
            f"a number from 0 to {_MAX_TEMPERATURE}",
        )
        if top_k is not None:
            _require_whole("top_k", top_k, 1)
            top_k = min(top_k, self.tokenizer.vocab_size)
        is_number = isinstance(top_p, int | float | np.number)
        _require(top_p is None or (is_number and 0 < top_p <= 1), "top_p", top_p, "in (0, 1]")
        _require(len(seeds) == len(prompts), "seed", seed, f"one, or {len(prompts)}")
        for s in seeds:
            _require_whole("seed", s, 0, 2**32 - 1)
        _require_whole("window_stride", stride, 1, n_time)
        ids = [self.tokenizer.encode(prompt) for prompt in prompts]
        sampling = sampler.Sampling(float(temperature), top_k, top_p)
        chunks = sampler.generate_ids(
            self.model, self.params, ids, seeds, max_new_tokens, sampling, stride
        )
        return ([self.tokenizer.decode(row) for row in chunk] for chunk in chunks)

    def logits(self, text: str) -> np.ndarray:
        """Predict the character after each one.

        Args:
            text: 1 to block_size characters.

        Returns:
            (len(text), vocab_size) float32; row i predicts character i + 1.

        Raises:
            UserError: if the text is too short, too long, or outside the vocabulary.
        """
        n_time = self.config.model.block_size
        _require(isinstance(text, str), "text", text, "a text")
        _require(1 <= len(text) <= n_time, "the text's length", len(text), f"from 1 to {n_time}")
        window_1xT = np.zeros((1, n_time), np.int32)
        window_1xT[0, : len(text)] = self.tokenizer.encode(text)
        return np.asarray(_logits(self.model, self.params, window_1xT)[0, : len(text)])

    def score(self, text: str, *, stride: int | None = None) -> np.ndarray:
        """Compute the log-probability of each character but the first.

        Args:
            text: 2 characters or more; longer ones than block_size are cut into windows.
            stride: as in `evaluate`.

        Returns:
            (len(text) - 1,) float32, natural logarithms.

        Raises:
            UserError: as `evaluate`.
        """
        n_time = self.config.model.block_size
        _require(isinstance(text, str), "text", text, "a text")
        _require(len(text) >= 2, "the text's length", len(text), "2 or more")
        if stride is not None:
            _require_whole("stride", stride, 1, n_time)
        ids = self.tokenizer.encode(text)
        return -evaluation.character_losses(self.model, self.params, ids, stride=stride)

    def evaluate(self, text: str, *, stride: int | None = None) -> evaluation.Evaluation:
        """Measure how well the model predicts a text.

        Args:
            text: 2 characters or more.
            stride: characters from one window to the next; None: windows do not overlap. The
                smaller, the more each character's prediction sees, and the longer it takes.

        Returns:
            Loss in nats per character, perplexity, bits per character, standard error, count.

        Raises:
            UserError: if the text is too short or outside the vocabulary, or the stride is not
                from 1 to block_size.
        """
        return evaluation.Evaluation.from_losses(-self.score(text, stride=stride))


def load(
    workdir: str | Path = "", *, step: int | Literal["best", "latest"] = "best"
) -> LanguageModel:
    """Load a trained model.

    Args:
        workdir: a run folder, such as "runs/cpu"; empty: the newest under "runs".
        step: which checkpoint; "best" is the one of lowest validation loss.

    Raises:
        UserError: if there is no such run or checkpoint, or this version cannot read it.
        DamagedError: if its files are not as they were saved; names one.
    """
    _require(isinstance(workdir, str | Path), "workdir", workdir, "a folder's name")
    if step not in ("best", "latest"):
        whole = isinstance(step, int) and not isinstance(step, bool)
        _require(whole, "step", step, "'best', 'latest' or a whole number")
    checkpoints = Checkpoints(find_run(str(workdir)))
    while True:
        steps = checkpoints.steps
        try:
            return _load(checkpoints, step)
        except Exception as error:
            if steps != checkpoints.steps:  # training has just replaced one: look again
                continue
            if isinstance(error, DamagedError) and len(steps) > 1:
                raise DamagedError(f"{error}; another step may do, of {steps}") from error
            raise


def _load(checkpoints: Checkpoints, step: int | Literal["best", "latest"]) -> LanguageModel:
    step = checkpoints.find(step)
    info = checkpoints.run_info(step)
    tokenizer = CharTokenizer(info.vocabulary)
    model = GPT(info.config.model, tokenizer.vocab_size)
    abstract = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    params = checkpoints.restore(step, {"params": sharding.on_one_device(abstract)})["params"]
    path = checkpoints.path(step)
    return LanguageModel(model, params, tokenizer, info.config, info.text_sha256, path)


@functools.partial(jax.jit, static_argnames="model")
def _logits(model: GPT, params: Any, idx_BxT: jax.Array) -> jax.Array:
    return cast(jax.Array, model.apply({"params": params}, idx_BxT))


def _require(holds: bool, name: str, value: object, right: str) -> None:
    if not holds:
        raise UserError(f"{name} is {value!r}; it must be {right}")


def _require_whole(name: str, value: object, least: int, most: int | None = None) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    right = f"{least} or more" if most is None else f"from {least} to {most}"
    fits = whole and least <= value and (most is None or value <= most)  # type: ignore[operator]
    _require(fits, name, value, right if whole else f"a whole number, {right}")
