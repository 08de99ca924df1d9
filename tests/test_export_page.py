"""Export to a page with the model inside: the file and the command, without a browser."""

import base64
import dataclasses
import json
import os
import re
import signal
import zlib

import jax
import numpy as np
import pytest
from fakes import SmallFiles, one_line, with_new_field

import shakegpt_jax
from shakegpt_jax.errors import UserError
from shakegpt_jax.web import prompt_page
from shakegpt_jax.web.prompt_page import export_page, model_data, page_facts


@pytest.fixture(scope="session")
def lm(finished) -> shakegpt_jax.LanguageModel:
    return shakegpt_jax.load(finished)


def data_of(page: str) -> dict:
    return json.loads(page.split('id="data">')[1].split("</script>")[0])


@pytest.mark.parametrize("float32", [False, True])
def test_the_command_writes_one_file_with_facts_and_weights(
    finished, lm, tmp_path, command, monkeypatch, float32
):
    monkeypatch.chdir(tmp_path)
    options = ["--float32"] if float32 else []
    args = ("--workdir", finished, "--format", "html", "--output", "page.html", *options)
    code, out, err = command("export", *args)
    assert (code, err) == (0, "")
    assert [*tmp_path.iterdir()] == [tmp_path / "page.html"]
    assert f"page.html {(tmp_path / 'page.html').stat().st_size:>26,} bytes\n" in out
    assert "Open it in a browser" in out
    assert ("float16" in out) is not float32
    page = (tmp_path / "page.html").read_text()
    assert str(finished.parent) not in page
    assert "connect-src 'none'" in page.split("</head>")[0]
    data = data_of(page)
    model = data.pop("model")
    assert data == page_facts(lm)
    raw = base64.b64decode(model["weights"])
    assert model["checksum"] == zlib.crc32(raw)
    numbers = np.frombuffer(raw, "<f4" if float32 else "<f2")
    ends = np.cumsum([size for _, size in model["sizes"]])
    assert ends[-1] == len(numbers) == lm.n_params
    weights = dict(zip((n for n, _ in model["sizes"]), np.split(numbers, ends[:-1]), strict=True))
    kernel = np.asarray(lm.params["block_0"]["mlp"]["c_fc"]["kernel"], model["dtype"])
    found = weights["block_0/mlp/c_fc/kernel"].reshape(kernel.T.shape)
    np.testing.assert_array_equal(found, kernel.T)
    bias = np.asarray(lm.params["ln_f"]["bias"], model["dtype"])
    np.testing.assert_array_equal(weights["ln_f/bias"], bias)


def test_a_file_is_replaced_only_with_force_and_only_by_a_whole_one(finished, tmp_path, command):
    path = tmp_path / "page.html"
    path.write_text("mine")
    args = ("export", "--workdir", finished, "--format", "html", "--output", path)
    code, out, err = command(*args)
    assert (code, out) == (2, "") and "page.html exists; --force replaces it" in one_line(err)
    with SmallFiles():  # a full disk
        code, out, err = command(*args, "--force")
    assert (code, out) == (2, "") and "File too large" in one_line(err)
    assert [*tmp_path.iterdir()] == [path] and path.read_text() == "mine"
    assert command(*args, "--force")[0] == 0
    assert [*tmp_path.iterdir()] == [path] and data_of(path.read_text())["layers"] == 1


def test_a_signal_leaves_no_half_of_a_page(finished, tmp_path, command, monkeypatch):
    whole = prompt_page.model_data

    def interrupted(*args, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return whole(*args, **options)

    monkeypatch.setattr(prompt_page, "model_data", interrupted)
    path = tmp_path / "page.html"
    result = command("export", "--workdir", finished, "--format", "html", "--output", path)
    assert result == (128 + signal.SIGINT, "", "")
    assert [*tmp_path.iterdir()] == [path] and path.read_text().endswith("</html>\n")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--output=page.html", "--float32"], "--float32 is for --format html"),
        (["--output=page", "--format=html"], "cannot write the page page: give a file such as"),
        (["--output=no/page.html", "--format=html"], "no such folder: no"),
        (["--output=page.html", "--format=html", "--step=7"], "no checkpoint of step 7"),
    ],
)
def test_bad_arguments_end_in_one_line(finished, tmp_path, command, monkeypatch, arguments, reason):
    monkeypatch.chdir(tmp_path)
    code, out, err = command("export", "--workdir", finished, *arguments)
    assert (code, out) == (2, "") and reason in one_line(err)
    assert not [*tmp_path.iterdir()]


def test_a_large_model_is_refused_and_serve_is_named(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_page, "MAX_PARAMETERS", lm.n_params - 1)
    with pytest.raises(UserError, match=re.escape(f"{lm.n_params:,} parameters; a page can")) as e:
        export_page(lm, str(tmp_path / "page.html"))
    assert "shakegpt serve" in str(e.value)
    assert not [*tmp_path.iterdir()]


def test_what_the_scripts_do_not_know_is_refused(lm):
    with pytest.raises(UserError, match=r"config\.model\.n_expert"):
        model_data(with_new_field(lm))
    params = dict(lm.params) | {"router": {"kernel": np.ones((2, 3), np.float32)}}
    with pytest.raises(UserError, match="differ in the parameter router/kernel"):
        model_data(dataclasses.replace(lm, params=params))
    del params["router"], params["ln_f"]
    with pytest.raises(UserError, match="differ in the parameter ln_f/bias"):
        model_data(dataclasses.replace(lm, params=params))


def test_weights_that_float16_cannot_hold_are_refused(lm):
    params = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(65_600.0), lm.params)
    large = dataclasses.replace(lm, params=params)
    with pytest.raises(UserError, match="too large for float16: try --float32"):
        model_data(large)
    assert model_data(large, float32=True)["dtype"] == "float32"
    params = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(np.nan), lm.params)
    with pytest.raises(UserError, match=r"weights that are not finite numbers$"):
        model_data(dataclasses.replace(lm, params=params), float32=True)
