"""Traces of JAX's profiler: which operations run, when and for how long."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from shakegpt_jax.distributed import is_primary


@contextmanager
def trace(run: Path, report: Callable[[str], object]) -> Iterator[None]:
    """Trace what process 0 runs inside the `with` block into a run folder; report where."""
    if not is_primary():
        yield
        return
    folder = run / "profile"
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # calls in Python would outnumber the operations
    with jax.profiler.trace(folder, profiler_options=options):
        yield
    report(f"Profile: {max(folder.rglob('*.trace.json.gz'))}")
    report(f"Open it on ui.perfetto.dev, or: pip install xprof, then xprof --logdir {folder}")
