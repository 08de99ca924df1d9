"""Settings by name and text, as on a command line, and what a misspelt name may mean."""

import difflib

from shakegpt_jax.config import Config
from shakegpt_jax.errors import UserError

# What other programs call a field; names that are spelt alike are found without this table.
_SYNONYMS = {
    "n_layer": "depth num_hidden_layers",
    "n_embd": "width dim d_model hidden hidden_size embed_dim",
    "block_size": "context context_length ctx n_ctx seq_len sequence_length window",
    "compute_dtype": "dtype precision",
    "path": "data text file dataset",
    "batch_size": "batch bs",
    "name": "optimizer",
    "learning_rate": "lr max_lr",
    "final_learning_rate": "min_lr final_lr",
    "decay": "schedule scheduler lr_schedule",
    "b1": "beta1 momentum",
    "b2": "beta2",
    "eps": "epsilon",
    "clip_norm": "grad_clip max_grad_norm",
    "weight_decay": "wd",
    "accumulate_steps": "grad_accum",
    "num_steps": "steps iters max_iters iterations epochs",
}
_BOOLEANS = {"true": True, "false": False}


def set_field(config: Config, path: str, text: str) -> None:
    """Set a field, such as "model.n_layer", from text of its type."""
    known = {path: (type(value), field) for path, field, value in config.fields()}
    if path not in known:
        meaning = {each: known[each][1].metadata["meaning"] for each in near_fields(path)}
        near = " or ".join(f"{each} ({text.partition(';')[0]})" for each, text in meaning.items())
        advice = f"did you mean {near}?" if near else "shakegpt train --help lists all"
        raise UserError(f"no config field {path}; {advice}")
    kind, field = known[path]
    try:
        value = _BOOLEANS[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError) as error:
        right = field.metadata["rule"].description
        raise UserError(f"config.{path} is {text!r}; it must be {right}") from error
    section, name = path.split(".")
    setattr(config.sections[section], name, value)


def near_fields(path: str) -> list[str]:
    """Return the fields that an unknown path may mean: by name, by synonym, by spelling."""
    meant: dict[str, list[str]] = {}
    for each, field, _ in Config().fields():
        for word in (field.name, *_SYNONYMS.get(field.name, "").split()):
            meant.setdefault(word, []).append(each)
    name = path.rpartition(".")[2].lower()
    words = [name] if name in meant else difflib.get_close_matches(name, meant, n=1)
    return [each for word in words for each in meant[word]]
