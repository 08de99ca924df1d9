"""README.md and docs/ say what the code does."""

import re
from pathlib import Path

import pytest

import shakegpt_jax
from shakegpt_jax.config import Config
from shakegpt_jax.configs import NAMES, cpu

ROOT = Path(__file__).parent.parent


def cell(value: object) -> str:
    return f"`{value}`" if value != "" else '`""`'


def config_table() -> list[str]:
    """Return the rows of the table in docs/configuration.md, made from the code."""
    cpu_values = {path: value for path, _, value in cpu.get_config().fields()}
    return [
        f"| `{path}` | {cell(default)} | "
        f"{cell(cpu_values[path]) if cpu_values[path] != default else ''} | "
        f"{field.metadata['meaning']} |"
        for path, field, default in Config().fields()
    ]


def test_configuration_lists_every_field_with_its_values_and_meaning():
    text = (ROOT / "docs" / "configuration.md").read_text()
    assert re.findall(r"^\| `\w+\.\w+` .*$", text, re.MULTILINE) == config_table()
    assert all(f"`{name}`" in text for name in NAMES)


def test_the_citation_has_the_version_of_the_package():
    assert f"\nversion: {shakegpt_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_python_example_runs(finished_copy, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    folder = finished_copy.parent
    (folder / "runs").mkdir()
    finished_copy.rename(folder / "runs" / "cpu")
    monkeypatch.chdir(folder)
    # The model of the tests has a window of 8 and the vocabulary of a part of the text.
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert len(capsys.readouterr().out) == 50
    assert names["lm"].checkpoint.parts[:2] == ("runs", "cpu")


@pytest.mark.parametrize(
    "path", ["README.md", "CHANGELOG.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_to_files_exist(path):
    text = (ROOT / path).read_text()
    targets = re.findall(r"\]\(([^)#:]+)\)", text)
    assert all(((ROOT / path).parent / target).exists() for target in targets), targets
