"""Export a trained model to Hugging Face transformers; requires safetensors."""

from shakegpt_jax.command_line.entry_point import run_command


def main() -> None:
    """Parse the arguments, export and say how to load the result."""
    import json
    import sys

    from shakegpt_jax.command_line.arguments import ArgumentParser, StoreOnce, named
    from shakegpt_jax.command_line.extras import import_extra
    from shakegpt_jax.command_line.signals import record_signal

    parser = ArgumentParser(
        "python -m shakegpt_jax.export", "Export a trained model to Hugging Face transformers."
    )
    parser.add_run()
    parser.add_step()
    add = parser.add_argument
    add(
        "--output",
        type=named,
        action=StoreOnce,
        required=True,
        metavar="DIR",
        help="folder for the exported model",
    )
    add("--force", action="store_true", help="replace an earlier export")
    args = parser.parse_args()

    from shakegpt_jax.inference.language_model import load
    from shakegpt_jax.interop.export_folder import check_output, export_folder

    import_extra("safetensors", extra="hf")  # before loading, which takes longer
    check_output(args.output, force=args.force)
    lm = load(args.workdir or "", step=args.step)
    with record_signal() as stop:  # so that no half of an export is left
        sizes = export_folder(lm, args.output, force=args.force)
    if stop.received:
        sys.exit(128 + stop.received)
    print(f"{lm.checkpoint} is exported to {args.output}:")
    for name, size in sizes.items():
        print(f"  {name:<22} {size:>13,} bytes")
    print("Load it in Python, after pip install torch transformers:")
    print(f'  transformers.pipeline("text-generation", {json.dumps(args.output)})')


if __name__ == "__main__":
    run_command(main)
