"""A trained model as a Python object: load it, generate text, score text."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack, overload

import jax
import numpy as np

from shakegpt_jax.checkpoints.run_folder import RunMetadata
from shakegpt_jax.checkpoints.writer import check_new, write_run
from shakegpt_jax.cli.command import printable
from shakegpt_jax.config import Config
from shakegpt_jax.data.corpus import Corpus, load_corpus
from shakegpt_jax.data.tokenizer import CharTokenizer, show_character
from shakegpt_jax.errors import UserError
from shakegpt_jax.inference import MAX_NEW_TOKENS, PROMPT, SEED, TEMPERATURE, choose_prompt
from shakegpt_jax.inference.decoding import for_decoding
from shakegpt_jax.inference.drafting import Drafter
from shakegpt_jax.inference.inspection import attention_weights, hidden_states
from shakegpt_jax.inference.sampler import default_window_stride, generate_ids
from shakegpt_jax.inference.sampling import (
    Options,
    Sampling,
    as_integer,
    as_seeds,
    as_texts,
    require,
    truncate_at_stops,
)
from shakegpt_jax.inference.scoring import character_losses, next_logits
from shakegpt_jax.model.gpt import GPT
from shakegpt_jax.reporting.metrics import Evaluation


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
        """Name of the run folder that it was loaded from, with unprintable characters escaped."""
        return printable(self.checkpoint.resolve().parents[1].name) if self.checkpoint else "model"

    @property
    def n_params(self) -> int:
        """Number of parameters."""
        return sum(p.size for p in jax.tree.leaves(self.params))

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a Sequence[str], too
        self, prompt: str, max_new_tokens: int = MAX_NEW_TOKENS, **options: Unpack[Options]
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str],
        max_new_tokens: int = MAX_NEW_TOKENS,
        **options: Unpack[Options],
    ) -> list[str]: ...

    def generate(
        self, prompt: Any, max_new_tokens: int = MAX_NEW_TOKENS, **options: Any
    ) -> str | list[str]:
        """Continue a prompt, or several in one batch, each as it would be continued alone.

        Args:
            prompt: one text or a list of texts, each of 1 character or more.
            max_new_tokens: characters to generate for each.
            **options: those of `stream`.

        Returns:
            The prompt and its continuation, or a list of them.

        Raises:
            UserError: if a prompt is empty or has characters outside the vocabulary, an option is
                out of range, or `draft` is True and `load_corpus` fails.
        """
        pieces: Any = self.stream(prompt, max_new_tokens, **options)
        if isinstance(prompt, str):
            return prompt + "".join(pieces)
        return ["".join(row) for row in zip(prompt, *pieces, strict=True)]

    @overload
    def stream(  # type: ignore[overload-overlap]  # a str is a Sequence[str], too
        self, prompt: str, max_new_tokens: int = MAX_NEW_TOKENS, **options: Unpack[Options]
    ) -> Iterator[str]: ...

    @overload
    def stream(
        self,
        prompt: Sequence[str],
        max_new_tokens: int = MAX_NEW_TOKENS,
        **options: Unpack[Options],
    ) -> Iterator[list[str]]: ...

    def stream(
        self,
        prompt: Any,
        max_new_tokens: int = MAX_NEW_TOKENS,
        *,
        temperature: float = TEMPERATURE,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | Sequence[int] = SEED,
        stop: str | Sequence[str] = (),
        window_stride: int | None = None,
        draft: bool | None = None,
    ) -> Iterator[str] | Iterator[list[str]]:
        """Continue prompts as `generate` does; yield each new piece as it is generated.

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
            An iterator over texts, or over lists with one text per prompt. The prompts are not
            repeated.
        """
        is_text = isinstance(prompt, str)
        is_prompt = is_text or (isinstance(prompt, Sequence) and not isinstance(prompt, bytes))
        require(is_prompt, "prompt", prompt, "a text or a list of texts")
        prompts = as_texts("prompt", [prompt] if is_text else prompt)
        stop = [stop] if isinstance(stop, str) else stop
        stops = as_texts("stop", stop) if stop else ()
        n_time = self.config.model.block_size
        if window_stride is None:
            window_stride = default_window_stride(n_time)
        window_stride = as_integer("window_stride", window_stride, 1, n_time)
        options = Sampling.of(self.model.vocab_size, temperature, top_k, top_p, min_p)
        ids = [self.tokenizer.encode(prompt) for prompt in prompts]
        seeds = as_seeds(seed, len(prompts))
        n_new = as_integer("max_new_tokens", max_new_tokens, 1)
        require(draft is None or isinstance(draft, bool), "draft", draft, "True, False or None")
        ngram = self._drafter.choose(draft, options, len(ids), n_new, window_stride)
        chunks = generate_ids(*self.for_decoding, ids, seeds, n_new, options, window_stride, ngram)
        pieces: Iterator[list[str]]
        pieces = ([self._decode(row) for row in chunk] for chunk in chunks)
        pieces = truncate_at_stops(pieces, stops, len(prompts)) if stops else pieces
        return (piece for (piece,) in pieces) if is_text else pieces

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
    def _drafter(self) -> Drafter:
        return Drafter(*self.for_decoding, self.load_corpus)

    @overload
    def logits(  # type: ignore[overload-overlap]
        self, text: str, *, stride: int | None = None
    ) -> np.ndarray: ...

    @overload
    def logits(self, text: Sequence[str], *, stride: int | None = None) -> list[np.ndarray]: ...

    def logits(
        self, text: str | Sequence[str], *, stride: int | None = None
    ) -> np.ndarray | list[np.ndarray]:
        """Compute the logits of the next character at every position; see `evaluate`.

        Returns:
            (len(text), vocab_size) float32; row i predicts character i + 1. A list of such arrays
            for a list of texts.
        """
        if not isinstance(text, str):
            return [self.logits(each, stride=stride) for each in as_texts("text", text)]
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

    def attention(self, text: str) -> np.ndarray:
        """Compute how much each character attends to itself and to each one before it.

        Args:
            text: 1 to block_size characters.

        Returns:
            (n_layer, n_head, len(text), len(text)) float32 weights; each row, the last axis, adds
            up to 1.
        """
        weights = self._inspect(attention_weights, text)
        return weights[..., : len(text)]

    def hidden_states(self, text: str) -> np.ndarray:
        """Compute the residual stream: the input of the first block, and the output of each.

        `lm.model.apply({"params": lm.params}, states[-1], method="head")` are the logits: the last
        states are those before the final LayerNorm.

        Args:
            text: 1 to block_size characters.

        Returns:
            (n_layer + 1, len(text), n_embd) float32.
        """
        return self._inspect(hidden_states, text)

    def _inspect(self, compute: Callable[..., jax.Array], text: str) -> np.ndarray:
        """Apply a function of (1, T) ids, padded so that one shape is compiled."""
        n_time = self.config.model.block_size
        require(isinstance(text, str), "text", text, "a text")
        as_integer("the text's length", len(text), 1, n_time)
        window_1xT = np.zeros((1, n_time), np.int32)
        window_1xT[0, : len(text)] = self.tokenizer.encode(text)
        return np.asarray(compute(*self.for_decoding, window_1xT))[0][..., : len(text), :]

    def save(self, folder: str | Path) -> None:
        """Write a run folder that `load` opens, and `train.init_from` starts from.

        It holds what `load` returned, without an optimizer state.

        Raises:
            UserError: if something is there already, or the folder cannot be created.
            SaveError: if the checkpoint cannot be saved.
        """
        require(isinstance(folder, str | Path), "folder", folder, "a folder name")
        metadata = RunMetadata(self.config, self.tokenizer.vocabulary, self.text_sha256)
        write_run(check_new(folder), self.step or 1, self.params, self.metrics or None, metadata)

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
        name, vocabulary = path or "Tiny Shakespeare", self.tokenizer.vocabulary
        corpus = load_corpus(path, self.config.model.block_size, vocabulary)
        if new := set(corpus.tokenizer.vocabulary) - set(vocabulary):
            shown = show_character(min(new))
            raise UserError(f"{name} has characters that the model lacks, such as {shown}")
        if self.text_sha256 not in ("", corpus.sha256):
            raise UserError(f"{name} is not the text that the model was trained on, or has changed")
        return corpus
