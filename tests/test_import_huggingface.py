"""Import of folders of Hugging Face transformers, the reference wherever it is installed."""

import dataclasses
import struct
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from changes import change_json, replaced
from fakes import one_line
from safetensors.numpy import load_file, save_file

import shakegpt_jax
from shakegpt_jax.checkpoints.reader import CheckpointReader
from shakegpt_jax.interop.huggingface_export import export_folder
from shakegpt_jax.interop.huggingface_import import read_huggingface
from shakegpt_jax.model.gpt import abstract_params

RUN = Path("new", "run")


def test_an_export_comes_back_bit_for_bit(hf, finished, command):
    export_folder(shakegpt_jax.load(finished), str(hf), special_tokens=False, force=True)
    code, out, err = command("import_model", hf, "--workdir", RUN)
    assert (code, err) == (0, "")
    assert "an export of step 12" in out and "--split val --path text.txt\n" in out
    ours, theirs = shakegpt_jax.load(RUN), shakegpt_jax.load(finished)
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    ours, theirs = CheckpointReader(RUN), CheckpointReader(finished)
    assert ours.steps == [12]
    text = {"data.path": "text.txt"}  # without its folder
    expected = theirs.read(12).metadata
    assert ours.read(12).metadata == dataclasses.replace(
        expected, config=expected.config.replace(text)
    )
    assert ours.read(12).metrics == theirs.read(12).metrics
    code, out, err = command("train", "--workdir", RUN)
    assert code == 2 and "without an optimizer state" in one_line(err)


def test_special_tokens_are_dropped(hf, finished, text, command):
    assert command("import_model", hf, "--workdir", RUN)[0] == 0
    ours, theirs = shakegpt_jax.load(RUN), shakegpt_jax.load(finished)
    assert (ours.tokenizer, ours.metrics) == (theirs.tokenizer, theirs.metrics)
    np.testing.assert_allclose(ours.logits(text[:8]), theirs.logits(text[:8]), atol=1e-6)
    # Elsewhere they come first, the newline ends a text, and rows fill up a multiple of 64.
    weights = load_file(hf / "model.safetensors")
    for name in ("transformer.wte.weight", "lm_head.weight"):
        rows = np.full((64, 16), np.nan, np.float32)
        rows[:3], rows[3:61] = 7, weights[name][:58]
        rows[61:] = 0
        weights[name] = rows
    save_file(weights, hf / "model.safetensors")
    characters = {c: i for i, c in enumerate(theirs.tokenizer.vocabulary, 3)}
    vocab = {"<unk>": 0, "<pad>": 1, "<s>": 2} | characters
    added = [{"id": i, "content": c, "special": True} for c, i in [*vocab.items()][1:4]]
    change_json(hf / "tokenizer.json", replaced(vocab, "model", "vocab"))
    change_json(hf / "tokenizer.json", replaced("<unk>", "model", "unk_token"))
    change_json(hf / "tokenizer.json", replaced(added, "added_tokens"))
    change_json(hf / "config.json", replaced(64, "vocab_size"))
    code, out, err = command("import_model", hf, "--workdir", "other")
    assert (code, err) == (0, "") and "without its tokens <pad> <s> <unk>" in out
    jax.tree.map(np.testing.assert_array_equal, shakegpt_jax.load("other").params, ours.params)


@pytest.mark.parametrize(
    ("field", "value"),
    [("step", 0), ("step", True), ("step", "12"), ("step", 2**31), ("metrics", {"loss": "low"})],
)
def test_a_step_and_metrics_that_no_checkpoint_has_are_refused(hf, refused, field, value):
    change_json(hf / "config.json", replaced(value, "shakegpt_jax", field))
    line = refused(hf)
    assert "in shakegpt_jax, step is " in line and repr(value) in line


def test_without_safetensors_it_says_what_to_install(hf, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    line = refused(hf)
    assert "this needs safetensors: pip install" in line and "[hf]" in line


def test_no_parameter_is_invented_for_a_module_that_gpt_2_lacks(hf, refused, monkeypatch):
    def with_another(*args: Any) -> Any:
        return abstract_params(*args) | {"rotary": {"scale": np.zeros(4)}}

    monkeypatch.setattr("shakegpt_jax.interop.gpt2.abstract_params", with_another)
    assert "differ in the parameter rotary/scale" in refused(hf)


def test_an_export_of_strangers_can_name_no_file_of_the_user(hf, command):
    for field in ("path", "init_from"):
        section = "data" if field == "path" else "train"
        change = replaced("/etc/\x1b]0;mine\x07passwd", "shakegpt_jax", "config", section, field)
        change_json(hf / "config.json", change)
    code, out, err = command("import_model", hf, "--workdir", RUN)
    assert (code, err) == (0, "") and "/etc" not in out
    assert "--path '\\x1b]0;mine\\x07passwd'\n" in out
    config = shakegpt_jax.load(RUN).config
    assert config.data.path == config.train.init_from == "\x1b]0;mine\x07passwd"
    code, out, err = command("evaluate", "--workdir", RUN)
    assert (code, out) == (2, "")
    assert one_line(err).startswith(r"error: no such file: \x1b]0;mine\x07passwd; ")


def test_weights_that_have_changed_lose_their_metrics_and_their_text(hf, command):
    weights = load_file(hf / "model.safetensors")
    weights["transformer.wpe.weight"] += 1
    save_file(weights, hf / "model.safetensors", {"format": "pt"})
    code, out, _ = command("import_model", hf, "--workdir", RUN)
    assert code == 0 and "which has changed since its export" in out
    assert command("export", "--workdir", RUN, "--output", "out")[0] == 0
    assert "training steps" not in Path("out", "README.md").read_text()
    lm = shakegpt_jax.load(RUN)
    assert (lm.text_sha256, CheckpointReader(RUN).read(1).metrics) == ("", {})
    np.testing.assert_array_equal(
        lm.params["wpe"]["embedding"], weights["transformer.wpe.weight"], strict=True
    )


@pytest.mark.parametrize(("name", "dtype"), [("F16", "float16"), ("BF16", "bfloat16")])
def test_half_precision_of_a_folder_is_read_exactly(hf, name, dtype):
    weights = load_file(hf / "model.safetensors")
    half = {key: value.astype(jax.numpy.dtype(dtype)) for key, value in weights.items()}
    save_file(half, hf / "model.safetensors")
    assert f'"dtype":"{name}"'.encode() in (hf / "model.safetensors").read_bytes()
    found = read_huggingface(str(hf)).params
    np.testing.assert_array_equal(
        found["wpe"]["embedding"], half["transformer.wpe.weight"].astype(np.float32), strict=True
    )
    kernel = half["transformer.h.0.attn.c_attn.weight"].astype(np.float32)
    np.testing.assert_array_equal(found["block_0"]["attn"]["c_attn"]["kernel"], kernel)


BIAS = "transformer.h.0.mlp.c_fc.bias"


@pytest.mark.parametrize("dtype", ["I32", "F8_E4M3"])
def test_biases_are_floats_and_masks_may_be_anything(hf, refused, dtype):
    weights = load_file(hf / "model.safetensors")
    mask = {"transformer.h.0.attn.bias": np.ones((1, 1, 8, 8), bool)}
    save_file(weights | mask, hf / "model.safetensors")
    bias = read_huggingface(str(hf)).params["block_0"]["mlp"]["c_fc"]["bias"]
    np.testing.assert_array_equal(bias, weights[BIAS])
    numpy_dtype = {"I32": "int32", "F8_E4M3": "float8_e4m3fn"}[dtype]
    save_file(
        weights | {BIAS: weights[BIAS].astype(jax.numpy.dtype(numpy_dtype))},
        hf / "model.safetensors",
    )
    assert f"{BIAS} is {dtype}; it must be F32 or" in refused(hf)


HF_CONFIGS = {
    "model_type is 'llama'; it must be 'gpt2'": {"model_type": "llama"},
    "activation_function is 'relu'; it must be 'gelu_new' or": {"activation_function": "relu"},
    "n_inner is 32; it must be None or 64": {"n_inner": 32},
    "layer_norm_epsilon is 0.1; it must be 1e-05": {"layer_norm_epsilon": 0.1},
    "scale_attn_by_inverse_layer_idx is True": {"scale_attn_by_inverse_layer_idx": True},
    "scale_attn_weights is False": {"scale_attn_weights": False},
    "add_cross_attention is True": {"add_cross_attention": True},
    "tie_word_embeddings is 'no'": {"tie_word_embeddings": "no"},
    "vocab_size is 60; it must be at least 61": {"vocab_size": 60},
    "vocab_size is '61'; it must be": {"vocab_size": "61"},
    "weight has the shape (61, 16); its config needs (64,": {"vocab_size": 64},
    "model.n_layer is '1'; it must be": {"n_layer": "1"},
    "n_embd is [16]": {"n_embd": [16]},
    "its config needs (": {"n_embd": 100_000},
    "lacks transformer.h.1": {"n_layer": 2},
    "wpe.weight has the shape (8, 16); its config needs (9, 16)": {"n_positions": 9},
    "config.json: in shakegpt_jax, its format_version is None": {"shakegpt_jax": ...},
    "its entry shakegpt_jax describes another model": {"n_head": 4},
}


@pytest.mark.parametrize("reason", HF_CONFIGS)
def test_configs_that_mean_another_model_are_refused(hf, reason, refused):
    def change(config: dict[str, Any]) -> None:
        entry = config["shakegpt_jax"]
        if reason.startswith(("its config", "lacks", "wpe")):
            del config["shakegpt_jax"]  # as in a model of others
        config.update(HF_CONFIGS[reason])
        if config.get("shakegpt_jax") is ...:
            config["shakegpt_jax"] = {"weights_sha256": entry["weights_sha256"]}

    change_json(hf / "config.json", change)
    assert reason in refused(hf)


TOKENIZERS = {
    "added_tokens is [{'id': 58}]": replaced([{"id": 58}], "added_tokens"),
    "the vocab has the token '[EOS]'": replaced([{"id": 60, "content": "[EOS]"}], "added_tokens"),
    "normalizer is {'type': 'Lowercase'}": replaced({"type": "Lowercase"}, "normalizer"),
    "post_processor is {'type': 'Temp": replaced(
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[BOS]"}}]},
        "post_processor",
    ),
    "pre_tokenizer is {'type': 'ByteLevel'}": replaced({"type": "ByteLevel"}, "pre_tokenizer"),
    "pre_tokenizer is None": replaced(None, "pre_tokenizer"),
    "pre_tokenizer is {'type': 'Split'": replaced(".", "pre_tokenizer", "pattern", "Regex"),
    "model.type is 'Unigram'": replaced("Unigram", "model", "type"),
    "model.merges is [['t', 'h']]": replaced([["t", "h"]], "model", "merges"),
    "no model with a vocab": replaced([["a", 0.0]], "model", "vocab"),
    "vocab has the token 'the'": replaced(61, "model", "vocab", "the"),
    "the ids of the vocab are not 0 to": replaced(1, "model", "vocab", "e"),
    "the ids of the vocab are not": replaced("1", "model", "vocab", "e"),
}


@pytest.mark.parametrize("reason", TOKENIZERS)
def test_tokens_that_are_not_characters_are_refused(hf, reason, refused):
    change_json(hf / "tokenizer.json", TOKENIZERS[reason])
    line = refused(hf)
    assert line.startswith("error: ") and "tokenizer.json: " in line and reason in line


def test_incomplete_and_damaged_folders_are_refused(hf, tmp_path, refused):
    weights = hf / "model.safetensors"
    whole = weights.read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    for damaged in (
        b"",
        whole[:100],
        whole[: len(whole) // 2],
        struct.pack("<Q", 2**62) + whole[8:],
        whole[: 8 + size].replace(b'"F32"', b'"I32"', 1) + whole[8 + size :],
        whole[: 8 + size].replace(b"[16]", b"[61]", 1) + whole[8 + size :],
    ):
        weights.write_bytes(damaged)
        assert "model.safetensors" in refused(hf)
    weights.unlink()
    (hf / "pytorch_model.bin").touch()
    assert "has no model.safetensors; load the model in transformers and save it" in refused(hf)
    for name in ("tokenizer.json", "config.json"):
        for content, reason in {
            b"": "is not JSON",
            b"[" * 100_000: "is not JSON",
            b"\xff": "is not JSON",
            b"[1]": "is not a JSON object",
        }.items():
            (hf / name).write_bytes(content)
            line = refused(hf)
            assert name in line and reason in line
        (hf / name).unlink()
        assert f"cannot read hf/{name}" in refused("hf")
    (tmp_path / "nothing").mkdir()
    assert "cannot read nothing/config.json" in refused("nothing")


def make_tokenizer(kind: str, characters: str) -> Any:
    """Return a tokenizer of the library `tokenizers` for single characters."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    vocab = {character: i for i, character in enumerate(characters)}
    if kind == "BPE":
        return Tokenizer(models.BPE(vocab, []))
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    pattern = {"empty": "", "class": Regex(r"[\s\S]"), "flag": Regex("(?m).")}[kind]
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    return tokenizer


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "activation", "tied"),
    [
        ("BPE", "gelu_new", True),
        ("empty", "gelu", True),
        ("class", "gelu_pytorch_tanh", False),
        ("flag", "gelu", False),
    ],
)
def test_a_folder_of_others_has_the_logits_that_transformers_computes(
    tmp_path, monkeypatch, shuffled, text, command, kind, activation, tied
):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    tokenizer = make_tokenizer(kind, shuffled)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.save_pretrained("others")
    config = transformers.GPT2Config(
        vocab_size=len(shuffled),
        n_positions=32,
        n_embd=24,
        n_layer=2,
        n_head=3,
        activation_function=activation,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained("others")
    code, out, err = command("import_model", "others", "--workdir", RUN)
    assert (code, err) == (0, "") and "Hugging Face transformers" in out
    lm = shakegpt_jax.load(RUN)
    prompt = text[50:82]
    ids = fast(prompt, return_tensors="pt")["input_ids"]
    assert ids.shape == (1, 32)
    logits = model(ids).logits[0].detach().numpy()
    order = [shuffled.index(c) for c in lm.tokenizer.vocabulary]
    np.testing.assert_allclose(lm.logits(prompt), logits[:, order], atol=2e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("special_tokens", [True, False])
def test_an_export_that_transformers_saves_again_comes_back(hf, finished, command, special_tokens):
    transformers = pytest.importorskip("transformers")
    export_folder(shakegpt_jax.load(finished), str(hf), special_tokens=special_tokens, force=True)
    assert command("import_model", hf, "--workdir", "direct")[0] == 0
    transformers.AutoModelForCausalLM.from_pretrained(hf).save_pretrained("saved")
    transformers.AutoTokenizer.from_pretrained(hf).save_pretrained("saved")
    code, out, err = command("import_model", "saved", "--workdir", RUN)
    assert (code, err) == (0, "") and "an export of step 12" in out
    ours, theirs = shakegpt_jax.load(RUN), shakegpt_jax.load("direct")
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    assert (ours.tokenizer, ours.metrics) == (theirs.tokenizer, theirs.metrics)
    assert (ours.config, ours.text_sha256) == (theirs.config, theirs.text_sha256)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("multiple", [None, 64])
def test_tokens_that_users_have_added_and_trained_are_dropped(hf, finished, command, multiple):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    export_folder(shakegpt_jax.load(finished), str(hf), special_tokens=False, force=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(hf)
    model = transformers.AutoModelForCausalLM.from_pretrained(hf)
    tokenizer.add_special_tokens({"pad_token": "<pad>", "eos_token": "\n"})
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=multiple)
    ids = tokenizer("\n\n", return_tensors="pt")["input_ids"]
    model(ids, labels=ids).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.save_pretrained("trained")
    tokenizer.save_pretrained("trained")
    code, out, err = command("import_model", "trained", "--workdir", RUN)
    assert (code, err) == (0, "") and "since its export, without its tokens <pad>\n" in out
    ours = shakegpt_jax.load(RUN)
    expected = model.eval()(ids).logits[0, :, : ours.tokenizer.vocab_size].detach().numpy()
    np.testing.assert_allclose(ours.logits("\n\n"), expected, rtol=0, atol=1e-5)
