"""A run on its devices: the sharded state, the compiled loop over steps, windows from the host.

Axes: K steps, B windows per batch, T characters per window.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from shakegpt_jax.checkpoints.reader import CheckpointReader, SavedCheckpoint
from shakegpt_jax.checkpoints.run_folder import RunMetadata
from shakegpt_jax.checkpoints.writer import CheckpointWriter
from shakegpt_jax.config import Config
from shakegpt_jax.data.corpus import Corpus, spread_pieces
from shakegpt_jax.data.windows import gather_on_host
from shakegpt_jax.distributed import is_primary
from shakegpt_jax.errors import UserError
from shakegpt_jax.inference.language_model import LanguageModel
from shakegpt_jax.inference.scoring import evaluate
from shakegpt_jax.model.gpt import GPT, abstract_params, train_flops_per_character
from shakegpt_jax.model.linear import compute_dtype
from shakegpt_jax.reporting.metrics import Evaluation, MetricsRow
from shakegpt_jax.sharding import batches_sharding, gather, in_background, peak_flops, replicate
from shakegpt_jax.training.optimizer import make_optimizer
from shakegpt_jax.training.start import load_params
from shakegpt_jax.training.step import Metrics, TrainState, make_chunk, peak_bytes, window_starts

_MAX_DEVICE_BYTES = 2**28  # of training text; windows of a longer one are gathered on the host


class HostWindows:
    """Draws the windows that a chunk would draw from (n,) ids on the device."""

    def __init__(self, config: Config, ids: np.ndarray, mesh: Mesh):
        self._data, self._block_size = config.data, config.model.block_size
        self._ids, self._seed = ids, np.int32(config.train.seed)
        self._sharding = batches_sharding(mesh)

    def abstract(self, n: int) -> jax.ShapeDtypeStruct:
        """Describe the windows of a chunk of n steps."""
        shape = (n, self._data.batch_size, self._block_size + 1)
        return jax.ShapeDtypeStruct(shape, self._ids.dtype, sharding=self._sharding)

    def chunks(self, step: int, lengths: list[int]) -> Iterator[jax.Array]:
        """Yield the (K, B, T + 1) windows of chunks of some lengths, the first one at a step."""
        return in_background(self._gather, itertools.accumulate(lengths, initial=step), lengths)

    def _gather(self, step: int, n: int) -> jax.Array:
        with jax.default_device(_cpu()):  # an accelerator would first finish the chunk it runs
            steps_K = np.arange(step, step + n, dtype=np.int32)
            sizes = len(self._ids), self._data, self._block_size
            starts_KxB = np.asarray(window_starts(self._seed, steps_K, *sizes))
        return jax.make_array_from_callback(  # for the devices of this process
            self.abstract(n).shape,
            self._sharding,
            lambda index: gather_on_host(
                self._ids, starts_KxB[index and index[:2]], self._block_size
            ),
        )


def _cpu() -> jax.Device | None:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return None


def chunk_lengths(num_steps: int, longest: int) -> list[int]:
    """Split a number of steps into chunks of `longest` and one of the remainder."""
    return [min(longest, num_steps - done) for done in range(0, num_steps, longest)]


def _fetch(dispatched: tuple[int, Metrics]) -> tuple[int, dict[str, np.ndarray], float]:
    """Wait for the metrics of n steps; return n, the metrics and when they arrived."""
    n, metrics = dispatched
    return n, jax.device_get(metrics), time.perf_counter()


class Trainer:
    """Advances the train state, once it is initialized or restored, by chunks of steps."""

    state: TrainState

    def __init__(self, config: Config, corpus: Corpus, mesh: Mesh):
        train = config.train
        self.config, self.corpus, self.mesh = config, corpus, mesh
        self.model = GPT(config.model, corpus.tokenizer.vocab_size)
        self.characters_per_step = config.data.batch_size * config.model.block_size
        self._seed = np.int32(train.seed)  # an argument: other seeds do not recompile
        self._chunk = make_chunk(config, self.model, mesh)
        self._windows: HostWindows | None = None
        if corpus.train_ids.nbytes <= _MAX_DEVICE_BYTES:
            self._train_ids = replicate(mesh, corpus.train_ids)
        else:
            self._windows = HostWindows(config, corpus.train_ids, mesh)
        self._pieces = spread_pieces(corpus.val_ids, train.eval_characters, config.model.block_size)
        # Ahead of time: compilation does not count as training time, and nothing recompiles later.
        start = time.perf_counter()
        longest, every = train.steps_per_dispatch, min(train.eval_every, train.num_steps)
        lengths = chunk_lengths(every, longest) + chunk_lengths(train.num_steps % every, longest)
        self._run_chunk: dict[int, jax.stages.Compiled] = {}
        self._compile(lengths)
        self.compile_seconds = time.perf_counter() - start

    @property
    def peak_characters_per_second(self) -> float | None:
        """Speed at the bfloat16 peak of the devices; None if it is unknown or does not apply."""
        peak, config = peak_flops(self.mesh.devices.flat[0].device_kind), self.config.model
        if peak is None or compute_dtype(config) != jnp.bfloat16:
            return None
        return peak * self.mesh.size / train_flops_per_character(config, self.model.vocab_size)

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes on each device: what a dispatch takes, and what there is."""
        stats = self.mesh.local_devices[0].memory_stats() or {}
        needed = max(map(peak_bytes, self._run_chunk.values()))
        return needed, stats.get("bytes_limit") or memory_limit()

    def _compile(self, lengths: list[int]) -> None:
        with jax.set_mesh(self.mesh):
            for n in set(lengths) - self._run_chunk.keys():
                inputs = self._windows.abstract(n) if self._windows else self._train_ids
                lowered = self._chunk.run.lower(self._chunk.abstract_state, inputs, self._seed, n)
                self._run_chunk[n] = lowered.compile()

    def initialize(self, source: SavedCheckpoint | None = None) -> None:
        """Create the state before the first step, sharded from the start."""
        start = source and load_params(source, self.corpus.tokenizer.vocabulary, self.mesh)
        with jax.set_mesh(self.mesh):
            self.state = self._chunk.create(self._seed, start)

    def run(
        self, step: int, until: int, stop: Callable[[], object] = lambda: False
    ) -> Iterator[MetricsRow]:
        """Train from a step until another one, and yield the metrics of each chunk.

        On an accelerator, the next chunk runs while the host reads the metrics. If `stop`, called
        before each dispatch, returns true, training ends at the step of the last metrics.
        """
        # On a CPU, XLA starts the next chunk before it returns the results of the last one: one
        # chunk would be charged for both, and the other would seem to take no time.
        overlap = map if jax.default_backend() == "cpu" else in_background
        chunks = chunk_lengths(until - step, self.config.train.steps_per_dispatch)
        self._compile(chunks)  # a resumed run may have other lengths
        mark = time.perf_counter()
        if self._windows:
            inputs = self._windows.chunks(step, chunks)
        else:
            inputs = itertools.repeat(self._train_ids, len(chunks))
        pairs = itertools.takewhile(lambda _: not stop(), zip(chunks, inputs, strict=True))
        # A thread reads the clock: on a GPU, the next dispatch blocks for most of a chunk.
        for n, metrics, end in overlap(_fetch, itertools.starmap(self._dispatch, pairs)):
            step += n
            yield self._summarize(metrics, step, n, end - mark)
            mark = end

    def _dispatch(self, n: int, inputs: jax.Array) -> tuple[int, Metrics]:
        self.state, metrics = self._run_chunk[n](self.state, inputs, self._seed)
        return n, metrics

    def _summarize(
        self, metrics: dict[str, np.ndarray], step: int, n: int, seconds: float
    ) -> MetricsRow:
        """Average the metrics of n steps over their updates, without those that were skipped."""
        config, consecutive = self.config, metrics["consecutive_nonfinite"]
        skipped = (consecutive > 0) & (consecutive <= config.optimizer.max_skipped_updates)
        loss, norm = (metrics[name][~skipped] for name in ("loss", "gradient_norm"))
        return MetricsRow(
            step=step,
            characters_per_second=n * self.characters_per_step / seconds,
            train_loss=float(loss.mean()) if len(loss) else None,
            learning_rate=float(metrics["learning_rate"][-1]),
            gradient_norm=float(norm.mean()) if len(norm) else None,
            skipped_updates=int(skipped.sum()),
            train_time=seconds,
        )

    def evaluate(self) -> Evaluation:
        """Evaluate on the validation split, or on pieces of it if it is long."""
        with jax.set_mesh(self.mesh):
            return evaluate(self.model, self.state.params, *self._pieces)

    def sample(self, prompt: str, length: int) -> str:
        """Continue a prompt by `length` characters with the current parameters, in process 0."""
        params, corpus = gather(self.mesh, self.state.params), self.corpus
        if not is_primary():
            return ""
        lm = LanguageModel(self.model, params, corpus.tokenizer, self.config, corpus.sha256)
        return lm.generate(prompt, length, draft=False)  # the n-gram would be built every time

    def save(
        self, checkpoints: CheckpointWriter, step: int, metrics: dict[str, float] | None
    ) -> None:
        """Start saving the state, with the validation metrics of its parameters, if known."""
        metadata = RunMetadata(self.config, self.corpus.tokenizer.vocabulary, self.corpus.sha256)
        checkpoints.save(step, self.state.params, self.state.opt_state, metrics, metadata)

    def restore(self, checkpoints: CheckpointReader, step: int) -> None:
        """Restore the state from a checkpoint."""
        state = self._chunk.abstract_state
        restored = checkpoints.restore(step, {"params": state.params, "opt_state": state.opt_state})
        self.state = TrainState(step=replicate(self.mesh, np.int32(step)), **restored)


def check_memory(config: Config, vocab_size: int, mesh: Mesh) -> None:
    """Check that parameters, gradients and moments fit into the memory of a CPU."""
    if jax.default_backend() != "cpu":
        return
    model, params = config.model, abstract_params(config.model, vocab_size)
    n_parameter = sum(each.size for each in jax.tree.leaves(params))
    tx = make_optimizer(config.optimizer, config.train.num_steps)
    arrays = jax.tree.leaves((params, params, jax.eval_shape(tx.init, params)))  # and gradients
    n_byte = sum(each.size * each.dtype.itemsize for each in arrays)
    # Devices along the axis `data` have copies of all.
    needed, available = n_byte * mesh.shape["data"] // jax.process_count(), memory_limit()
    if needed > available:
        raise UserError(
            f"a model of {n_parameter:,} parameters needs at least {needed / 1e9:,.1f} GB to "
            f"train, and this process may use {available / 1e9:,.1f} GB; choose a smaller "
            f"config.model.n_layer ({model.n_layer}) or n_embd ({model.n_embd})"
        )


def memory_limit(root: Path = Path("/")) -> int:
    """Return the bytes that this process may use: physical memory, or the limit of its cgroups."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    version_1, version_2 = ("memory", "memory.limit_in_bytes"), ("", "memory.max")
    own = root / "proc/self/cgroup"  # lines like 0::/a/b and 4:memory:/a/b
    for line in own.read_text().splitlines() if own.exists() else []:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        mount, name = version_1 if controllers else version_2
        path = root / "sys/fs/cgroup" / mount / group.lstrip("/")
        for folder in (path, *path.parents):  # a container sees only the last of them
            with contextlib.suppress(OSError, ValueError):  # absent, or "max"
                limits.append(int((folder / name).read_text()))
    return min(limits)
