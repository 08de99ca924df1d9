"""Export to Hugging Face transformers, which is the reference wherever it is installed."""

import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
from fakes import SmallFiles, one_line
from safetensors.numpy import load_file, save

import shakegpt_jax
from shakegpt_jax.checkpoints.reader import CheckpointReader
from shakegpt_jax.checkpoints.run_folder import RunMetadata
from shakegpt_jax.config import Config, ModelConfig
from shakegpt_jax.data.text import TINY_SHAKESPEARE_SHA256
from shakegpt_jax.data.tokenizer import CharTokenizer
from shakegpt_jax.errors import UserError
from shakegpt_jax.interop.huggingface_export import export_folder
from shakegpt_jax.model.gpt import GPT, init_params
from shakegpt_jax.training.run import train
from shakegpt_jax.web.prompt_page import model_data

FILES = [
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]
# Newlines of all kinds, combining characters, emoji of several code points, the syntax of JSON and
# of special tokens, a null byte, a byte-order mark.
ODD = "\r\n\t\0 \x7f\x85\u2028\u00a0\ufeffe\u0301é\"'\\/{}[]<|>UNKs😀👨\u200d👩\u200d👧\ufe0f𐍈"


def random_model(config: Config, text: str) -> shakegpt_jax.LanguageModel:
    """Return a model whose parameters are all random, biases and scales too."""
    tokenizer = CharTokenizer.from_text(text)
    model = GPT(config.model, tokenizer.vocab_size)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jax.numpy.asarray(rng.normal(0, 0.5, x.shape), x.dtype),
        jax.eval_shape(lambda: init_params(model, jax.random.key(0))),
    )
    return shakegpt_jax.LanguageModel(model, params, tokenizer, config, "0" * 64)


@pytest.fixture(scope="session")
def lm(finished) -> shakegpt_jax.LanguageModel:
    return shakegpt_jax.load(finished)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_command_writes_every_file_and_says_how_to_load_them(
    finished, exported, tmp_path, command, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, out, err = command("export", "--workdir", finished, "--output", "new/hf")
    assert (code, err) == (0, "")
    assert content(tmp_path / "new" / "hf") == content(exported)
    assert [*tmp_path.iterdir(), *(tmp_path / "new").iterdir()] == [
        tmp_path / "new",
        tmp_path / "new" / "hf",
    ]
    assert len({path.stat().st_mode for path in (tmp_path / "new" / "hf").iterdir()}) == 1
    assert sorted(path.name for path in exported.iterdir()) == FILES
    assert all(f"  {name} " in out for name in FILES)
    assert '  transformers.pipeline("text-generation", "new/hf", max_new_tokens=4)\n' in out


def test_the_config_has_all_that_rebuilds_the_run(finished, lm, exported):
    config = json.loads((exported / "config.json").read_text())
    entry = config["shakegpt_jax"]
    without_folders = lm.config.replace({"data.path": Path(lm.config.data.path).name})
    expected = RunMetadata(without_folders, lm.tokenizer.vocabulary, lm.text_sha256)
    assert RunMetadata.from_json(entry) == expected
    assert lm.checkpoint
    step = int(lm.checkpoint.name)
    assert (entry["step"], entry["metrics"]) == (
        step,
        CheckpointReader(finished).read(step).metrics,
    )
    shape = {name: config[name] for name in ("n_layer", "n_head", "n_embd", "n_positions")}
    assert shape == {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 8}
    tokenizer = json.loads((exported / "tokenizer.json").read_text())
    vocabulary, special = tokenizer["model"]["vocab"], ["[UNK]", "[PAD]", "[EOS]"]
    assert [*vocabulary] == [*lm.tokenizer.vocabulary, *special]
    assert [*vocabulary.values()] == [*range(config["vocab_size"])]
    assert [token["content"] for token in tokenizer["added_tokens"]] == special


def test_the_weights_are_the_parameters_bit_for_bit(lm, finished, tmp_path, command):
    args = ("export", "--workdir", finished, "--output", tmp_path / "hf", "--nospecial_tokens")
    assert command(*args)[0] == 0
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    assert sum(tensor.size for tensor in tensors.values()) == lm.n_params
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype("float32")}
    attention = lm.params["block_0"]["attn"]["c_attn"]
    for name, param in {
        "transformer.wpe.weight": lm.params["wpe"]["embedding"],
        "transformer.h.0.attn.c_attn.weight": attention["kernel"],
        "transformer.h.0.attn.c_attn.bias": attention["bias"],
        "transformer.ln_f.weight": lm.params["ln_f"]["scale"],
        "lm_head.weight": lm.params["lm_head"]["kernel"].T,
    }.items():
        np.testing.assert_array_equal(tensors[name], param, strict=True)


@pytest.mark.parametrize("special_tokens", [True, False])
def test_a_model_without_biases_gets_those_of_gpt_2(config, tmp_path, command, special_tokens):
    config.model.bias = False
    lm, folder = random_model(config.freeze(), "abcd\n"), tmp_path / "hf"
    export_folder(lm, str(folder), special_tokens=special_tokens)
    tensors = load_file(folder / "model.safetensors")
    assert tensors["transformer.h.0.attn.c_attn.bias"].shape == (3 * config.model.n_embd,)
    biases = [name for name in tensors if name.endswith(".bias")]
    moved = {"transformer.ln_f.bias"} if special_tokens else set()
    assert {name for name in biases if tensors[name].any()} == moved
    assert command("import_model", folder, "--workdir", tmp_path / "run")[0] == 0
    same = shakegpt_jax.load(tmp_path / "run")
    np.testing.assert_allclose(same.logits("ab\ncd"), lm.logits("ab\ncd"), rtol=1e-4, atol=1e-4)
    scales = {"ln_f": {}}  # a parameter that is missing is named all the same
    with pytest.raises(UserError, match="GPT-2 and the model differ in the parameter ln_f/scale"):
        export_folder(dataclasses.replace(lm, params=lm.params | scales), str(tmp_path / "other"))
    names = {name for name, _ in model_data(lm)["sizes"]}
    assert names == {name for name, _ in model_data(same)["sizes"]}


def test_the_card_has_the_figures_of_the_checkpoint(finished, lm, exported):
    card = (exported / "README.md").read_text()
    metrics = CheckpointReader(finished).read(12).metrics
    for figure in (
        f"validation loss | {metrics['loss']:.4f} ± {metrics['standard_error']:.4f} nats",
        f"perplexity | {metrics['perplexity']:.3f} |",
        f"value: {metrics['bits_per_character']}\n",
        "training steps | 12 |",
        f"parameters | {lm.n_params:,}, float32 |",
        "training text | text.txt |",
        lm.text_sha256,
    ):
        assert figure in card
    assert str(finished.parent.parent) not in card


def test_a_file_or_another_folder_is_never_replaced(finished, exported, tmp_path, command):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text('{"model_type": "gpt2"}')
    export_folder(shakegpt_jax.load(finished), str(tmp_path / "more"))
    (tmp_path / "more" / "notes.txt").write_text("mine")
    for name, reason in {
        "file": "is not a folder",
        "file/inside": "is not a folder",
        "folder": "holds config.json, which no export wrote",
        "more": "holds notes.txt, which no export wrote",
    }.items():
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        args = ("export", "--workdir", finished, "--output", tmp_path / name)
        for force in ((), ("--force",)):
            code, out, err = command(*args, *force)
            assert (code, out) == (2, "") and reason in one_line(err)
        after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert after == before


def test_an_earlier_export_is_replaced_only_with_force(finished, exported, tmp_path, command):
    folder = tmp_path / "hf"
    args = ("export", "--workdir", finished, "--output", folder)
    assert command(*args, "--step", "6")[0] == 0
    before = content(folder)
    assert before != content(exported)
    code, out, err = command(*args)
    assert (code, out) == (2, "") and "holds an export already; --force replaces" in one_line(err)
    lm = shakegpt_jax.load(finished)
    with SmallFiles(), pytest.raises(OSError, match="File too large") as raised:
        export_folder(lm, str(folder), force=True)
    assert raised.value.filename == str(folder)
    assert content(folder) == before
    assert command(*args, "--force")[0] == 0
    assert content(folder) == content(exported)
    assert [*tmp_path.iterdir()] == [folder]
    (tmp_path / "empty").mkdir()
    assert command(*args[:-1], tmp_path / "empty")[0] == 0
    assert content(tmp_path / "empty").keys() == set(FILES)


def test_the_card_of_a_fine_tuned_model_names_its_source(lm, tmp_path):
    tuned = lm.config.replace({"train.init_from": "/home/someone/the_source"})
    export_folder(dataclasses.replace(lm, config=tuned), str(tmp_path / "hf"))
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "| started from | the\\_source |" in card and "someone" not in card
    assert "imitates its training text and that of the\\_source, which it started from" in card


def test_a_signal_leaves_no_half_of_an_export(finished, exported, tmp_path, command, monkeypatch):
    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return save(*args)

    monkeypatch.setattr("safetensors.numpy.save", interrupted)
    code, out, err = command("export", "--workdir", finished, "--output", tmp_path / "hf")
    assert (code, out, err) == (128 + signal.SIGINT, "", "")
    assert [*tmp_path.iterdir()] == [tmp_path / "hf"]
    assert content(tmp_path / "hf") == content(exported)


def test_without_safetensors_it_says_what_to_install(finished, tmp_path, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    code, out, err = command("export", "--workdir", finished, "--output", tmp_path / "hf")
    assert (code, out) == (2, "")
    assert "this needs safetensors: pip install" in one_line(err) and "[hf]" in err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--output"),
        (["--output="], "the name is empty"),
        (["--output=hf", "--output=gguf"], "--output is given twice"),
        (["--output=hf", "--format=html", "--nospecial_tokens"], "is for --format hf"),
        (["--output=hf", "--step=7"], "no checkpoint of step 7; there are: [6, 12]"),
        (["--output=/dev/null/hf"], "/dev/null/hf is not a folder"),
        (["--output=" + 300 * "x"], "(File name too long)"),
    ],
)
def test_bad_arguments_end_in_one_line(finished, tmp_path, command, monkeypatch, arguments, reason):
    monkeypatch.chdir(tmp_path)
    code, out, err = command("export", "--workdir", finished, *arguments)
    assert (code, out) == (2, "") and reason in one_line(err)
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_cannot_be_created_is_named(lm):
    with pytest.raises(OSError, match="No such file") as raised:
        export_folder(lm, "/proc/none/hf")
    assert raised.value.filename == "/proc/none/hf"


@dataclasses.dataclass(unsafe_hash=True)
class RotaryConfig(ModelConfig):
    """What the config would be with a setting that changes what the model computes."""

    rotary: bool = dataclasses.field(
        default=False, metadata=ModelConfig.__dataclass_fields__["remat"].metadata
    )


def test_what_gpt_2_cannot_compute_is_refused(lm, tmp_path):
    rotary = dataclasses.replace(lm.config, model=RotaryConfig())
    model = GPT(rotary.model, lm.model.vocab_size)
    nan = {"wpe": {"embedding": lm.params["wpe"]["embedding"].at[3, 2].set(np.nan)}}
    gated = {"block_0": lm.params["block_0"] | {"gate": {"kernel": np.ones((2, 2), np.float32)}}}
    scale = {"ln_f": {"scale": lm.params["ln_f"]["scale"].at[3].set(1e-6)} | {"bias": np.ones(16)}}
    headless = {name: each for name, each in lm.params.items() if name != "lm_head"}
    for changed, reason in (
        (
            {"config": rotary, "model": model},
            "config.model.rotary is False; GPT-2 does not support it",
        ),
        ({"params": lm.params | nan}, "wpe.embedding has values that are not finite"),
        (
            {"params": lm.params | gated},
            "differ in the parameter block_0/gate/kernel",
        ),
        ({"params": lm.params | scale}, "LayerNorm is close to 0; export with --nospecial_tokens"),
        ({"params": headless}, "differ in the parameter lm_head/kernel"),
    ):
        with pytest.raises(UserError, match=reason):
            export_folder(dataclasses.replace(lm, **changed), str(tmp_path / "hf"))
        assert not [*tmp_path.iterdir()]


def test_a_vocabulary_that_is_not_unicode_is_rejected(lm, tmp_path):
    surrogate = dataclasses.replace(lm, tokenizer=CharTokenizer("ab\ud800"))
    with pytest.raises(UserError, match="lone surrogate"):
        export_folder(surrogate, str(tmp_path / "hf"))
    assert not [*tmp_path.iterdir()]


@pytest.fixture
def odd(config, tmp_path) -> tuple[shakegpt_jax.LanguageModel, str]:
    """A model of odd characters, with the settings that an export could lose, and its export."""
    config.model.n_layer = 3
    config.model.compute_dtype = "bfloat16"
    config.model.remat = True
    config.model.dropout = 0.1
    lm = random_model(config.freeze(), ODD)
    lm = dataclasses.replace(lm, text_sha256=TINY_SHAKESPEARE_SHA256)
    folder = str(tmp_path / "odd |`[<hf")
    export_folder(lm, folder)
    return lm, folder


@pytest.fixture
def transformers(monkeypatch) -> ModuleType:
    """The package, without progress bars, and offline."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its import alone
        return pytest.importorskip("transformers")


@pytest.mark.slow
def test_transformers_computes_the_same_logits(odd, transformers):
    import torch

    lm, folder = odd
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.top_k == 0  # samples from all characters
    assert not model.training and not model.config.tie_word_embeddings
    assert model.dtype == torch.float32
    assert sum(p.numel() for p in model.parameters()) == lm.n_params + 2 * 3 * 16
    exact = GPT(dataclasses.replace(lm.config.model, compute_dtype="float32"), len(set(ODD)))
    idx_BxT = np.random.default_rng(1).integers(0, len(set(ODD)), (16, 8))
    expected_BxTxV = exact.apply({"params": lm.params}, idx_BxT)
    with torch.no_grad():
        logits_BxTxV = model(torch.tensor(idx_BxT)).logits.numpy()
    assert np.std(expected_BxTxV) > 0.5
    np.testing.assert_allclose(logits_BxTxV[..., :-3], expected_BxTxV, rtol=0, atol=1e-5)
    for dtype, error in ((torch.float32, 1e-4), (torch.float16, 0.1), (torch.bfloat16, 1)):
        with torch.no_grad():
            logits = model.to(dtype)(torch.tensor(idx_BxT)).logits.float()
        below = logits[..., :-3].mean(-1, keepdim=True) - logits[..., -3:]
        np.testing.assert_allclose(below, 30, rtol=0, atol=error)


@pytest.mark.slow
def test_transformers_computes_the_logits_of_a_trained_model(
    run_config, text, tmp_path, transformers
):
    """Trained weights have large logits, so that the error is relative: that of float32."""
    import torch

    run_config.model.n_layer, run_config.model.n_embd, run_config.model.block_size = 2, 32, 32
    run_config.optimizer.learning_rate = 1e-2
    run_config.train.num_steps = run_config.train.eval_every = 250
    train(run_config.freeze(), tmp_path / "run")
    lm = shakegpt_jax.load(tmp_path / "run")
    export_folder(lm, str(tmp_path / "hf"))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    idx_BxT = lm.tokenizer.encode(text[: 50 * 32]).reshape(50, 32).astype(np.int32)
    ours = np.asarray(lm.model.apply({"params": lm.params}, idx_BxT))
    with torch.no_grad():
        theirs = model(torch.tensor(idx_BxT)).logits.numpy()
        exact = model.double()(torch.tensor(idx_BxT)).logits.numpy()
    exact = exact[..., :-3]
    largest = np.abs(exact).max()
    assert largest > 8
    for logits in (ours, theirs[..., :-3]):
        np.testing.assert_allclose(logits, exact, rtol=0, atol=3e-6 * largest)


@pytest.mark.slow
def test_the_tokenizer_of_transformers_is_exact(odd, transformers):
    lm, folder = odd
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rng = np.random.default_rng(2)
    texts = [
        "\n\n  \r\n\r",
        "  ",
        ODD,
        ODD[::-1],
        "e\u0301é",
        "😀\ufe0f👨\u200d👩\u200d👧",
        "[UNK]</s>",
    ]
    texts += ["".join(rng.choice(list(ODD), 50)) for _ in range(50)]
    n_character = lm.tokenizer.vocab_size
    assert len(tokenizer) == n_character + 3
    assert tokenizer("eQ[EOS]")["input_ids"][1:] == [n_character, n_character + 2]
    tokenizer.split_special_tokens = True
    export_folder(lm, folder, special_tokens=False, force=True)
    without = transformers.AutoTokenizer.from_pretrained(folder)
    assert len(without) == n_character
    for text, each in itertools.product(texts, (tokenizer, without)):
        encoded = each(text)
        assert encoded["input_ids"] == lm.tokenizer.encode(text).tolist()
        assert encoded.keys() == {"input_ids", "attention_mask"}
        assert each.decode(encoded["input_ids"]) == text
        assert each.decode(encoded["input_ids"], skip_special_tokens=True) == text
    assert without("")["input_ids"] == []
    for text in ("Q", "eéQ", "👩\u200d\U0001f466"):
        with pytest.raises(Exception, match=r"Missing \[UNK\] token"):
            without(text)


@pytest.mark.slow
def test_greedy_text_is_equal(config, tmp_path, transformers):
    config.model.n_layer = 2
    config.model.block_size = 32
    lm = random_model(config.freeze(), ODD)
    export_folder(lm, str(tmp_path / "hf"))
    pipe = transformers.pipeline("text-generation", str(tmp_path / "hf"), do_sample=False)
    for prompt in ("\n", "e\u0301 😀", ODD[:31]):
        n_new = 32 - len(prompt)
        (output,) = pipe(prompt, max_new_tokens=n_new)
        assert output["generated_text"] == lm.generate(prompt, n_new, temperature=0)
    (output,) = pipe(ODD * 2, max_new_tokens=20, handle_long_generation="hole")
    text = lm.generate((ODD * 2)[-12:], 20, temperature=0)
    assert output["generated_text"] == ODD * 2 + text[12:]
    prompts = ["e", "e\u0301 😀", ODD[:9]]
    found = [
        output["generated_text"] for (output,) in pipe(prompts, batch_size=3, max_new_tokens=9)
    ]
    assert found == [lm.generate(prompt, 9, temperature=0) for prompt in prompts]
    with pytest.raises(IndexError):
        pipe(ODD[:9], max_new_tokens=25)


@pytest.mark.slow
def test_tools_that_need_special_tokens(config, tmp_path, transformers):
    ctranslate2 = pytest.importorskip("ctranslate2")
    config.model.block_size = 32
    lm = random_model(config.freeze(), ODD)
    export_folder(lm, str(tmp_path / "hf"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    labels = collate([tokenizer("e" + tokenizer.eos_token), tokenizer("éé😀")])["labels"]
    e, accented, face = lm.tokenizer.encode("eé😀").tolist()
    assert labels.tolist() == [[-100, e, tokenizer.eos_token_id], [accented, accented, face]]
    ctranslate2.converters.TransformersConverter(str(tmp_path / "hf")).convert(tmp_path / "ct2")
    generator = ctranslate2.Generator(str(tmp_path / "ct2"))
    (scored,) = generator.score_batch([[*ODD[:9]]])
    np.testing.assert_allclose(scored.log_probs, lm.score(ODD[:9]), rtol=0, atol=1e-4)
    (found,) = generator.generate_batch(
        [[*ODD[:9]]], max_length=20, sampling_topk=1, include_prompt_in_result=False
    )
    assert ODD[:9] + "".join(found.sequences[0]) == lm.generate(ODD[:9], 20, temperature=0)


@pytest.mark.slow
def test_cards_are_valid_and_their_code_runs_without_this_package(exported, odd, transformers):
    from huggingface_hub import ModelCard

    program = "import os, sys"
    for folder, origin in (
        (exported, ("unknown", None, None)),
        (Path(odd[1]), ("mit", "en", ["karpathy/tiny_shakespeare"])),
    ):
        card = ModelCard.load(folder / "README.md")
        assert card.data.library_name == "transformers"
        assert card.data.pipeline_tag == "text-generation"
        assert (card.data.license, card.data.language, card.data.datasets) == origin
        code = "".join(re.findall(r"```python\n(.*?)```", card.content, re.DOTALL))
        code = code.replace("len(text) < 500", "len(text) < 50")
        program += f"\nos.chdir({str(folder.parent)!r})\n{code}\nassert 50 <= len(text) < 70"
    card = ModelCard.load(exported / "README.md")
    metrics = json.loads((exported / "config.json").read_text())["shakegpt_jax"]["metrics"]
    assert len(card.data.eval_results) == 3
    for result in card.data.eval_results:
        assert result.metric_value == metrics[result.metric_type]
    process = subprocess.run(
        [sys.executable, "-I", "-c", f"{program}\nassert 'jax' not in sys.modules"],
        env=os.environ
        | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert len(process.stdout) >= 100
