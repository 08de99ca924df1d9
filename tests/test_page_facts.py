import base64
import dataclasses
import hashlib
import json
import re

import pytest

import shakegpt_jax
from shakegpt_jax.data.text import TINY_SHAKESPEARE_SHA256
from shakegpt_jax.web.page_facts import page_facts
from shakegpt_jax.web.serving_page import serving_page


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
    }


def test_facts_of_a_model_without_checkpoint_or_text(lm):
    facts = page_facts(dataclasses.replace(lm, checkpoint=None, text_sha256=""))
    assert (facts["name"], facts["step"], facts["loss"]) == ("model", None, None)
    shakespeare = dataclasses.replace(lm, text_sha256=TINY_SHAKESPEARE_SHA256)
    assert page_facts(shakespeare)["text"] == "Shakespeare's plays (Tiny Shakespeare)"


def test_the_policy_allows_what_is_in_the_page_and_its_server_alone(lm):
    page, policy = serving_page(lm)
    assert page.count(f'content="{policy}"') == 1
    style = re.search("<style>(.*?)</style>", page, re.DOTALL)[1]
    script = re.search("<script>(.*?)</script>", page, re.DOTALL)[1]
    digests = [
        f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"
        for part in (style, script)
    ]
    assert policy == (
        f"default-src 'none'; style-src {digests[0]}; script-src {digests[1]}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
    assert not re.search(r"\s(src|href|style|on\w+)=", page.replace(script, ""))
