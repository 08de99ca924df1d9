"""A trained model as a Python object: load it, generate text, score text."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import jax
import numpy as np

from shakegpt_jax.checkpoints.reader import CheckpointReader
from shakegpt_jax.checkpoints.run_folder import find_run
from shakegpt_jax.config import Config
from shakegpt_jax.data.corpus import Corpus, load_corpus
from shakegpt_jax.data.tokenizer import CharTokenizer, show_character
from shakegpt_jax.errors import UserError
from shakegpt_jax.inference import MAX_NEW_TOKENS, PROMPT, SEED, TEMPERATURE
from shakegpt_jax.inference.decoding import acceptance_rate, for_decoding
from shakegpt_jax.inference.ngram import NGram, build_ngram, drafting_pays
from shakegpt_jax.inference.sampler import (
    default_window_stride,
    generate_ids,
    speedup_of_drafts,
)
from shakegpt_jax.inference.sampling import Sampling, as_integer, require, truncate_at_stops
from shakegpt_jax.inference.scoring import character_losses, next_logits
from shakegpt_jax.model.gpt import GPT, abstract_params
from shakegpt_jax.reporting.metrics import Evaluation
from shakegpt_jax.sharding import on_one_device

_LONGEST_PROMPT = 20  # characters, of one that is taken from the text

Prompt = TypeVar("Prompt", str, list[str])


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LanguageModel:
    """A model with its parameters and tokenizer. `shakegpt_jax.load` creates one."""

    model: GPT
    params: Any  # pytree of float32 arrays
    tokenizer: CharTokenizer
    config: Config
    text_sha256: str  # of the training text in UTF-8; empty: unknown
    checkpoint: Path | None = None  # where it was loaded from
    step: int | None = None  # of that checkpoint
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)  # on the validation split
    _acceptance_rates: dict[Sampling, float] = dataclasses.field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.model.config != self.config.model:
            raise ValueError("model.config and config.model differ")

    def __repr__(self) -> str:
        """Describe the model without its weights."""
        shape = self.config.model
        return (
            f"<LanguageModel: {self.n_params:,} parameters, {shape.n_layer} layers x "
            f"{shape.n_embd}, window {shape.block_size}, {self.tokenizer.vocab_size} characters, "
            f"checkpoint {self.checkpoint}>"
        )

    @functools.cached_property
    def name(self) -> str:
        """Name of the run folder that it was loaded from."""
        return self.checkpoint.resolve().parents[1].name if self.checkpoint else "model"

    @property
    def n_params(self) -> int:
        """Number of parameters."""
        return sum(p.size for p in jax.tree.leaves(self.params))

    def generate(
        self,
        prompt: Prompt,
        max_new_tokens: int = MAX_NEW_TOKENS,
        *,
        temperature: float = TEMPERATURE,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | Sequence[int] = SEED,
        stop: Sequence[str] = (),
        window_stride: int | None = None,
        draft: bool | None = None,
    ) -> Prompt:
        """Continue a prompt, or several in one batch, each as it would be continued alone.

        Args:
            prompt: one text or a list of texts, each of 1 character or more.
            max_new_tokens: characters to generate for each.
            temperature: divides the logits; 0 takes the most probable character.
            top_k: sample from the k most probable characters; None: from all.
            top_p: sample from the smallest set of characters whose probabilities add up to p
                (Holtzman et al. 2020); None: from all.
            min_p: sample from the characters whose probability is at least p times the highest
                (Nguyen et al. 2024); None: from all.
            seed: one for all prompts or one each.
            stop: stop strings; a continuation ends before the one that is complete first.
            window_stride: characters to drop when the context window is full. 1 keeps the most
                context but prefills the window for every character; None drops half of it.
            draft: whether an n-gram of the training text drafts characters that the model
                verifies, several per pass. The text is the same, up to rounding. None: where it
                is faster and the training text is still there.

        Returns:
            The prompt and its continuation, or a list of them.

        Raises:
            UserError: if a prompt is empty or has characters outside the vocabulary, an option is
                out of range, or `draft` is True and `load_corpus` fails.
        """
        is_prompt = isinstance(prompt, str | list | tuple)
        require(is_prompt, "prompt", prompt, "a text or a list of texts")
        prompts = [prompt] if isinstance(prompt, str) else prompt
        options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        options |= {"min_p": min_p, "seed": seed, "stop": stop}
        options |= {"window_stride": window_stride, "draft": draft}
        chunks = self.stream(prompts, max_new_tokens, **options)
        texts = ["".join(row) for row in zip(prompts, *chunks, strict=True)]
        return texts[0] if isinstance(prompt, str) else texts

    def stream(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = MAX_NEW_TOKENS,
        *,
        seed: int | Sequence[int] = SEED,
        stop: Sequence[str] = (),
        window_stride: int | None = None,
        draft: bool | None = None,
        **sampling: Any,
    ) -> Iterator[list[str]]:
        """Continue a list of prompts; yield one new piece of text per prompt as it is generated.

        Arguments and errors are those of `generate`.
        """
        prompts = _as_texts("prompts", prompts)
        stop = [stop] if isinstance(stop, str) else stop
        stops = _as_texts("stop", stop) if stop else ()
        n_time = self.config.model.block_size
        if window_stride is None:
            window_stride = default_window_stride(n_time)
        window_stride = as_integer("window_stride", window_stride, 1, n_time)
        options = Sampling.of(self.model.vocab_size, **sampling)
        ids = [self.tokenizer.encode(prompt) for prompt in prompts]
        seeds = _as_seeds(seed, len(prompts))
        n_new = as_integer("max_new_tokens", max_new_tokens, 1)
        require(draft is None or isinstance(draft, bool), "draft", draft, "True, False or None")
        ngram = None
        pays = drafting_pays(self.n_params, len(ids), n_new, window_stride)
        if draft or (draft is None and pays):
            try:
                if draft or self._speedup_of_drafts(options, len(ids)) > 1:
                    ngram = self._ngram[0]
            except UserError as error:
                if draft:
                    raise UserError(f"drafting needs the training text: {error}") from error
        chunks = generate_ids(*self.for_decoding, ids, seeds, n_new, options, window_stride, ngram)
        pieces = ([self._decode(row) for row in chunk] for chunk in chunks)
        return truncate_at_stops(pieces, stops, len(prompts)) if stops else pieces

    def _decode(self, ids: np.ndarray) -> str:
        if (ids < 0).any():  # see `sample_token`
            raise UserError(self._not_finite)
        return self.tokenizer.decode(ids)

    @property
    def _not_finite(self) -> str:
        return f"the model {self.checkpoint or ''} gives logits that are not finite"

    @functools.cached_property
    def for_decoding(self) -> tuple[GPT, Any]:
        """The model and its parameters in the form that reads and writes single texts fastest."""
        return for_decoding(self.model, self.params)

    @functools.cached_property
    def _ngram(self) -> tuple[NGram, np.ndarray]:
        """An n-gram of the training split, and a window of the validation split."""
        corpus = self.load_corpus()
        window_T = corpus.val_ids[: self.config.model.block_size]
        return build_ngram(corpus.train_ids, self.model.vocab_size), window_T

    def _speedup_of_drafts(self, sampling: Sampling, n_row: int) -> float:
        if sampling not in self._acceptance_rates:
            ngram, window_T = self._ngram
            contexts_T = ngram.contexts([window_T[: i + 1] for i in range(len(window_T))])
            rate = acceptance_rate(*self.for_decoding, ngram, window_T, contexts_T, sampling)
            self._acceptance_rates[sampling] = float(rate)
        config = self.for_decoding[0].config
        return speedup_of_drafts(self._acceptance_rates[sampling], n_row, config)

    @overload
    def logits(self, text: str, *, stride: int | None = None) -> np.ndarray: ...

    @overload
    def logits(self, text: list[str], *, stride: int | None = None) -> list[np.ndarray]: ...

    def logits(
        self, text: str | list[str], *, stride: int | None = None
    ) -> np.ndarray | list[np.ndarray]:
        """Compute the logits of the next character at every position; see `evaluate`.

        Returns:
            (len(text), vocab_size) float32; row i predicts character i + 1. A list of such arrays
            for a list of texts.
        """
        if not isinstance(text, str):
            return [self.logits(each, stride=stride) for each in _as_texts("text", text)]
        return next_logits(*self.for_decoding, self.tokenizer.encode(text), stride=stride)

    def score(self, text: str, *, stride: int | None = None) -> np.ndarray:
        """Compute the log-probability of each character but the first; see `evaluate`.

        Returns:
            (len(text) - 1,) float32 natural logarithms.
        """
        require(isinstance(text, str), "text", text, "a text")
        ids = self.tokenizer.encode(text)
        losses = character_losses(*self.for_decoding, ids, stride=stride)
        if not np.isfinite(losses).all():
            raise UserError(self._not_finite)
        return -losses

    def evaluate(self, text: str, *, stride: int | None = None) -> Evaluation:
        """Compute how well the model predicts a text of 2 characters or more.

        Args:
            text: if it is longer than block_size, it is cut into windows.
            stride: characters from one window to the next; None: windows do not overlap. A
                smaller stride gives each character more context and takes longer.

        Returns:
            Loss in nats per character, perplexity, bits per character, standard error, count.

        Raises:
            UserError: if the text is too short or outside the vocabulary, or `stride` is not from
                1 to block_size.
        """
        return Evaluation.from_losses(-self.score(text, stride=stride))

    def default_prompt(self) -> str:
        """Return the default prompt, or a line of the validation text if it cannot be encoded."""
        vocabulary = self.tokenizer.vocabulary
        if set(PROMPT) <= set(vocabulary):
            return PROMPT
        try:
            val_ids = self.load_corpus().val_ids
        except UserError as error:
            raise UserError(
                f"the model cannot encode the default prompt; give one ({error})"
            ) from error
        return choose_prompt(vocabulary, self.tokenizer.decode(val_ids[:1_000]))

    def load_corpus(self, path: str | None = None) -> Corpus:
        """Load the text that the model was trained on, from a path or where it was then.

        If the text is unknown, any text in the vocabulary of the model is accepted.

        Raises:
            UserError: if the text cannot be read or has changed since, or is unknown.
        """
        if path is None and not self.text_sha256:
            raise UserError("the training text of an imported model is not known")
        path = self.config.data.path if path is None else path
        corpus = load_corpus(path, self.config.model.block_size, self.tokenizer.vocabulary)
        if new := set(corpus.tokenizer.vocabulary) - set(self.tokenizer.vocabulary):
            raise UserError(
                f"{path} has characters that the model lacks, such as {show_character(min(new))}"
            )
        if self.text_sha256 and corpus.sha256 != self.text_sha256:
            name = path or "Tiny Shakespeare"
            raise UserError(f"{name} is not the text that the model was trained on, or has changed")
        return corpus


def choose_prompt(vocabulary: str, val_text: str) -> str:
    """Return PROMPT, or the beginning of a line of `val_text` if a character is not known."""
    if set(PROMPT) <= set(vocabulary):
        return PROMPT
    _, _, from_next_line = val_text.partition("\n")  # the first line may lack its beginning
    lines = [line for line in (from_next_line or val_text).split("\n") if line.strip()]
    return (lines or [val_text])[0][:_LONGEST_PROMPT]


def _as_seeds(seed: Any, count: int) -> list[int]:
    """Return one seed per prompt, from one seed for all or a sequence of them."""
    seeds = [*seed] if np.ndim(seed) == 1 else [seed] * count
    if len(seeds) != count:
        raise UserError(f"seed has {len(seeds)} values; give one, or one per prompt ({count})")
    return [as_integer("seed", each, 0, 2**32 - 1) for each in seeds]


def _as_texts(name: str, value: Any) -> Sequence[str]:
    """Check that a value is a list of one non-empty text or more."""
    are_texts = isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)
    require(are_texts, name, value, "a list of texts")
    require(len(value) > 0, name, value, "one text or more")
    require(all(value), name.removesuffix("s"), "", "one character or more")
    return value


def load(
    workdir: str | Path = "", *, step: int | Literal["best", "latest"] = "best"
) -> LanguageModel:
    """Load a trained model.

    Args:
        workdir: a run folder; empty: the newest under "runs".
        step: the checkpoint; "best" has the lowest validation loss.

    Raises:
        UserError: if there is no such run or checkpoint, or this version cannot read it.
        CorruptCheckpointError: if a file of the checkpoint is missing or has changed.
    """
    require(isinstance(workdir, str | Path), "workdir", workdir, "a folder name")
    if isinstance(step, str):
        right = "'best', 'latest' or a whole number"
        require(step in ("best", "latest"), "step", step, right)
    else:
        step = as_integer("step", step, 0)
    checkpoints = CheckpointReader(find_run(str(workdir)))

    def restore() -> LanguageModel:
        saved = checkpoints.read(step)
        config, tokenizer = saved.metadata.config, CharTokenizer(saved.metadata.vocabulary)
        model = GPT(config.model, tokenizer.vocab_size)
        abstract = on_one_device(abstract_params(config.model, tokenizer.vocab_size))
        params = checkpoints.restore(saved.step, {"params": abstract})["params"]
        known = saved.metadata.text_sha256, saved.path, saved.step, saved.metrics
        return LanguageModel(model, params, tokenizer, config, *known)

    return checkpoints.read_stable(restore)
