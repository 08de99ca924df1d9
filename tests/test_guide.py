"""docs/guide.md runs and says what happens, and docs/guide.ipynb is made from it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
sys.path.append(str(DOCS))

from make_notebook import NOTEBOOK, cells, make_notebook  # noqa: E402

CHECKS = """
assert (inputs[:, 1:] == targets[:, :-1]).all() and inputs.shape == (12, 64)
assert (drop(random_key(0, "dropout", 7)) == drop(random_key(0, "dropout", 7))).all()
assert second.step == 1 and len(shapes_traced) == 1 and old.is_deleted()
assert losses[0] > 4 and losses[-1] < 2.8 and evaluation.loss < 2.8
assert lm.step == 200 and abs(lm.metrics["loss"] - evaluation.loss) < 0.01
assert kernel.addressable_shards[0].data.shape == (32, 256)
assert abs(np.array(metrics["loss"]) - losses[:20]).max() < 1e-2
written = tokenizer.decode(written)
assert lm.generate("O God, O God!", 10, temperature=0.8)[13:] == written[:10]
"""


def test_the_notebook_has_the_cells_of_the_guide_and_outputs():
    notebook = json.loads(NOTEBOOK.read_text())["cells"]
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in notebook] == cells()
    assert all(cell.get("outputs", True) for cell in notebook)


@pytest.mark.slow
def test_the_blocks_run_in_order(tmp_path):
    code = "\n".join(part for kind, part in cells() if kind == "code")
    command = [sys.executable, "-W", "error", "-c", code + CHECKS]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=300)


@pytest.mark.slow
def test_the_notebook_runs_and_shows_the_curves_once():
    for name in ("nbclient", "ipykernel"):
        pytest.importorskip(name)
    notebook = make_notebook()
    outputs = [each for cell in notebook.cells for each in cell.get("outputs", [])]
    assert sum("image/png" in each.get("data", {}) for each in outputs) == 1
    assert len(json.dumps(notebook)) < 200_000
