import base64
import contextlib
import dataclasses
import hashlib
import inspect
import json
import re
from pathlib import Path

import pytest

import shakegpt_jax
from shakegpt_jax.data.text import TINY_SHAKESPEARE_SHA256
from shakegpt_jax.serving import api
from shakegpt_jax.web.page import bundle
from shakegpt_jax.web.prompt_page import LIMITS, page_facts, serving_page


@pytest.fixture(scope="module")
def lm(finished) -> shakegpt_jax.LanguageModel:
    return shakegpt_jax.load(finished)


def test_facts(lm, finished):
    metrics = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["val_loss"] for row in metrics if "val_loss" in row}
    step = min(losses, key=losses.__getitem__)
    assert page_facts(lm) == {
        "name": "run",
        "vocabulary": lm.tokenizer.vocabulary,
        "parameters": lm.n_params,
        "layers": 1,
        "heads": 2,
        "width": 16,
        "window": 8,
        "window_stride": 5,
        "step": step,
        "loss": losses[step],
        "prompt": "O God, O God!",
        "text": "text.txt",
        "defaults": {"temperature": 0.8, "seed": 0, "length": 500},
        "limits": LIMITS,
    }


def test_defaults_are_those_of_generate_and_limits_those_of_the_server(lm):
    parameters = inspect.signature(lm.stream).parameters
    given = {"temperature": "temperature", "seed": "seed", "length": "max_new_tokens"}
    facts = page_facts(lm)["defaults"]
    assert facts == {name: parameters[given[name]].default for name in facts}
    # Empty fields.
    assert {parameters[name].default for name in ("top_k", "top_p", "min_p")} == {None}
    for name, field in {"length": "max_tokens"}.items() | {(n, n) for n in ("seed", "top_k")}:
        for value, is_right in ((LIMITS[name], True), (LIMITS[name] + 1, False)):
            body = json.dumps({"prompt": "First", field: value}).encode()
            with contextlib.nullcontext() if is_right else pytest.raises(api.ApiError, match=field):
                api.parse_completion(body, lm.tokenizer, "run")


def test_facts_of_a_model_without_checkpoint_or_text(lm):
    facts = page_facts(
        dataclasses.replace(lm, checkpoint=None, step=None, metrics={}, text_sha256="")
    )
    assert (facts["name"], facts["step"], facts["loss"]) == ("model", None, None)
    shakespeare = dataclasses.replace(lm, text_sha256=TINY_SHAKESPEARE_SHA256)
    assert page_facts(shakespeare)["text"] == "Shakespeare's plays (Tiny Shakespeare)"
    not_utf8 = dataclasses.replace(lm, checkpoint=Path("runs/a\udcff/checkpoints/3"))
    assert "a\\udcff: one character" in serving_page(not_utf8)[0].encode().decode()


@pytest.mark.parametrize("script", ["serving_page.js", "offline_page.js", "report.js"])
def test_modules_become_one_without_a_name_that_two_of_them_give(script):
    module = bundle(script)
    assert not re.search(r"^(import|export)\b", module, re.MULTILINE)
    declaration = r"^(?:async )?(?:const|let|class|function\*?) (\w+)"
    names = re.findall(declaration, module, re.MULTILINE)
    assert len(names) == len(set(names)) > 30


def test_the_policy_allows_what_is_in_the_page_and_its_server_alone(lm):
    page, policy = serving_page(lm)
    assert page.count(f'content="{policy}"') == 1
    style = re.search("<style>(.*?)</style>", page, re.DOTALL)[1]
    script = re.search('<script type="module">(.*?)</script>', page, re.DOTALL)[1]
    digests = [
        f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"
        for part in (style, script)
    ]
    assert policy == (
        f"default-src 'none'; style-src {digests[0]}; script-src {digests[1]}; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
    assert not re.search(r"\s(src|href|style|on\w+)=(?!.data:)", page.replace(script, ""))
