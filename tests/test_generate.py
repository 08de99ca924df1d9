import dataclasses
import gzip
import json
from collections import Counter

import jax
import pytest

import shakegpt_jax
from shakegpt_jax.errors import UserError
from shakegpt_jax.model.gpt import GPT
from shakegpt_jax.reporting.metrics import read_metrics


def test_the_prompt_needs_no_flag(finished, command):
    args = ("--workdir", finished, "--max_new_tokens", 20)
    expected = (0, shakegpt_jax.load(finished).generate("First", 20) + "\n")
    assert command("generate", "First", *args)[:2] == expected
    assert command("generate", *args, "First")[:2] == expected
    code, _, err = command("generate", "First", "--prompt", "First", *args)
    assert code == 2 and "not allowed with argument" in err


def test_a_run_as_prompt_is_refused(finished, command, monkeypatch):
    monkeypatch.chdir(finished.parent)
    code, out, err = command("generate", finished.name)
    assert (code, out) == (2, "") and f"--workdir {finished.name}" in err


@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_end_in_an_error(finished, temperature, draft):
    lm = shakegpt_jax.load(finished)
    huge = dataclasses.replace(lm, params=jax.tree.map(lambda each: each * 1e30, lm.params))
    with pytest.raises(UserError, match="logits that are not finite"):
        huge.generate("First", 20, temperature=temperature, draft=draft)
    with pytest.raises(UserError, match="logits that are not finite"):
        huge.score("First")


@pytest.mark.parametrize("step", [6, 12])
def test_a_model_knows_its_step_and_its_validation_metrics(finished, step):
    lm = shakegpt_jax.load(finished, step=step)
    (row,) = (row for row in read_metrics(finished) if row.step == step)
    assert (lm.step, lm.metrics) == (step, dataclasses.asdict(row.evaluation))


def test_the_config_of_a_model_is_that_of_its_run(finished):
    lm = shakegpt_jax.load(finished)
    assert lm.model.config is lm.config.model
    other = GPT(dataclasses.replace(lm.config.model, activation="gelu_exact"), lm.model.vocab_size)
    with pytest.raises(ValueError, match=r"model\.config and config\.model differ"):
        dataclasses.replace(lm, model=other)


def test_profiles_the_same_text_again(finished_copy, command):
    args = ("generate", "--workdir", finished_copy, "--max_new_tokens", 20, "--nodraft")
    code, out, err = command(*args, "--profile")
    assert (code, out) == command(*args)[:2]
    (trace,) = (finished_copy / "profile").rglob("*.trace.json.gz")
    assert f"Profile: {trace}\n" in err and f"xprof --logdir {finished_copy}/profile" in err
    with gzip.open(trace) as file:
        names = Counter(each.get("name") for each in json.load(file)["traceEvents"])
    assert max(n for name, n in names.items() if str(name).startswith("end: ")) >= 10
