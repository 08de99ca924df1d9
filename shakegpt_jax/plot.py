"""Plot the metrics of runs in one picture, or convert them for TensorBoard."""

from shakegpt_jax.cli.command import run_command


def main() -> None:
    """Parse the arguments, and plot or convert."""
    import shlex
    import sys
    from pathlib import Path

    from shakegpt_jax.checkpoints.run_folder import find_runs, run_lock, shared_folder, short_names
    from shakegpt_jax.cli.arguments import ArgumentParser, named
    from shakegpt_jax.errors import UserError
    from shakegpt_jax.reporting.curves import FILE_NAME, X_AXES, draw_curves, save_figure
    from shakegpt_jax.reporting.metrics import read_metrics

    parser = ArgumentParser("shakegpt plot", __doc__)
    parser.add_runs()
    add = parser.add_argument
    help_text = f"picture; default: {FILE_NAME} in the run folder, or beside several"
    add("--output", type=named, help=help_text)
    add("--x", choices=X_AXES, help="horizontal axis: step (default), or seconds of training")
    add("--tensorboard", action="store_true", help="write event files into the run folders instead")
    args = parser.parse_args()
    if args.tensorboard and (args.output or args.x):
        parser.error("--tensorboard cannot be combined with --output or --x")
    found = find_runs(args.runs + args.workdir, started=True)
    runs = {str(run): rows for run in found if (rows := read_metrics(run))}
    if others := ", ".join(str(run) for run in found if str(run) not in runs):
        line = f"no curves of {others}: metrics.jsonl is missing (an imported run) or empty"
        if not runs:
            raise UserError(line)
        print(line, file=sys.stderr)

    if args.tensorboard:
        from shakegpt_jax.reporting.tensorboard import EventFile

        for run in runs:
            with run_lock(run):  # a run that trains may append to such a file itself
                print(EventFile(Path(run), read_metrics(run)).path)
        logdir = shlex.quote(str(shared_folder(runs)))
        print(f"View: tensorboard --logdir {logdir}", file=sys.stderr)
        return

    from shakegpt_jax.checkpoints.reader import CheckpointReader
    from shakegpt_jax.reporting.terminal import differing_settings

    names = short_names(runs)
    configs, texts = {}, set()
    for run in runs if len(runs) > 1 else ():
        try:
            metadata = CheckpointReader(run).read("latest").metadata
        except UserError:  # none yet, or corrupt: the curves are there
            continue
        configs[names[run]] = metadata.config
        texts.add(metadata.text_sha256)
    note = "losses on different texts cannot be compared" if len(texts) > 1 else ""
    folder = Path(next(iter(runs))) if len(runs) == 1 else shared_folder(runs)
    output = args.output or folder / FILE_NAME
    metrics = {names[run]: rows for run, rows in runs.items()}
    save_figure(draw_curves(metrics, args.x or "step", note), output)
    for line in [note] * bool(note) + differing_settings(configs):
        print(line, file=sys.stderr)
    print(output)


if __name__ == "__main__":
    run_command(main)
