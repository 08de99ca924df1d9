"""Curves of a run in a notebook."""

import io
import sys
from pathlib import Path
from typing import Any

from shakegpt_jax.errors import UserError
from shakegpt_jax.reporting.curves import draw_curves, new_figure
from shakegpt_jax.reporting.metrics import read_metrics
from shakegpt_jax.reporting.trackers import Callback


def notebook_curves(workdir: Path) -> list[Callback]:
    """Return a callback that shows the curves at evaluations; empty outside a notebook.

    One picture is replaced each time, so that a saved notebook holds only the last.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if not hasattr(shell, "kernel"):
        return []
    try:
        new_figure()
    except UserError:  # no matplotlib
        return []
    from IPython.display import Image, display

    handle = display(display_id=True)

    def show(row: dict[str, Any]) -> None:
        if "val_loss" in row:
            picture = io.BytesIO()
            draw_curves({workdir.resolve().name: read_metrics(workdir)}).savefig(picture, dpi=80)
            handle.update(Image(picture.getvalue(), format="png"))

    return [show]
