"""Import a model of another tool into a run folder: nanoGPT's ckpt.pt, or a Hugging Face folder."""

from shakegpt_jax.cli.command import printable, run_command


def main() -> None:
    """Parse the arguments, import the model and print what can be done with it."""
    import os
    import shlex
    import sys

    from shakegpt_jax.cli.arguments import ArgumentParser, StoreOnce, named
    from shakegpt_jax.cli.command import record_signal

    parser = ArgumentParser("shakegpt import_model", __doc__)
    parser.usage = f"{parser.prog} SOURCE [options]"
    add = parser.add_argument
    help_text = "nanoGPT's ckpt.pt, or a folder of Hugging Face transformers"
    add("source", type=named, metavar="SOURCE", help=help_text)
    help_text = "run folder to create (%(default)s)"
    add("--workdir", type=named, action=StoreOnce, default="runs/imported", help=help_text)
    help_text = "with ckpt.pt: the meta.pkl of its text, which has the characters"
    add("--meta", type=named, action=StoreOnce, metavar="FILE", help=help_text)
    args = parser.parse_args()
    is_folder = os.path.isdir(args.source)
    if not is_folder and not os.path.isfile(args.source):
        parser.error(f"no such file or folder: {args.source}")
    if is_folder == bool(args.meta):
        right = "--meta data/shakespeare_char/meta.pkl or similar, and a folder takes no --meta"
        parser.error(f"nanoGPT's ckpt.pt takes {right}")

    from shakegpt_jax.checkpoints.writer import check_new, write_run
    from shakegpt_jax.interop.gpt2 import SHAPE
    from shakegpt_jax.interop.huggingface_import import read_huggingface
    from shakegpt_jax.interop.nanogpt import read_nanogpt

    folder = check_new(args.workdir)
    model = read_huggingface(args.source) if is_folder else read_nanogpt(args.source, args.meta)
    with record_signal() as stop:  # so that no half-written run is left behind
        write_run(folder, model.step, model.params, model.metrics, model.metadata)
    if stop.received:
        sys.exit(128 + stop.received)
    config, run = model.metadata.config, shlex.quote(args.workdir)
    shape, text = config.model, config.data.path  # of an export: a file name without its folder
    print(f"Imported from {model.origin}")
    print(
        f"{args.workdir}: {shape.n_layer} layers x {shape.n_embd}, window {shape.block_size}, "
        f"{len(model.metadata.vocabulary)} characters, {shape.activation}"
    )
    print(f"Generate: shakegpt generate --workdir {run}")
    known = f" --split val --path {shlex.quote(printable(text))}" if text else ""
    options = known if model.metadata.text_sha256 else " --path FILE"
    print(f"Evaluate: shakegpt evaluate --workdir {run}{options}")
    fields = [f"--config.model.{n}={getattr(shape, n)}" for n in (*SHAPE, "activation", "bias")]
    source = f" --config.data.path={shlex.quote(printable(text))}" if text else ""
    print(f"Continue training: shakegpt train --workdir {run}-tuned{source} \\")
    print(f"  --config.train.init_from={run} \\\n  {' '.join(fields[:3])} \\")
    print(f"  {' '.join(fields[3:])}")


if __name__ == "__main__":
    run_command(main)
