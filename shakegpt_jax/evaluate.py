"""Evaluate trained models on a text: loss, perplexity, bits per character."""

import json

from shakegpt_jax.command_line.entry_point import run_command, use_compilation_cache

_OPTIONS = ("step", "split", "path", "stride", "memorization")


def main() -> None:
    """Parse the arguments, evaluate and print."""
    from shakegpt_jax.checkpoints.run_folder import find_runs
    from shakegpt_jax.command_line.arguments import ArgumentParser

    parser = ArgumentParser(
        "python -m shakegpt_jax.evaluate",
        "Evaluate a trained model on a text, or compare several.",
    )
    parser.add_runs()
    parser.add_step()
    add = parser.add_argument
    add("--split", choices=("val", "train"), help="part of the training text (val)")
    add(
        "--path",
        help="another UTF-8 text; with --split: the new path of the training text",
    )
    add("--stride", type=int, help="characters from window to window; smaller is slower")
    add("--json", action="store_true", help="print one JSON object per run")
    add("--memorization", action="store_true", help="find the longest copy of training text")
    args = parser.parse_args()
    if args.path == "":
        parser.error("--path is empty; give a UTF-8 text file")
    workdirs = find_runs(args.workdir)

    from shakegpt_jax.inference.run_evaluation import evaluate_run
    from shakegpt_jax.reporting.progress import format_duration
    from shakegpt_jax.reporting.tables import print_table

    use_compilation_cache()
    options = {name: getattr(args, name) for name in _OPTIONS}
    results = [evaluate_run(workdir, **options) for workdir in workdirs]
    if args.json:
        for run in results:
            print(json.dumps(run.to_json()))
    elif len(results) > 1:
        columns = ["run", "loss", "std. error", "perplexity", "parameters", "step", "training"]
        rows = []
        for workdir, run in zip(workdirs, results, strict=True):
            found = run.evaluation
            figures = f"{found.loss:.4f}", f"{found.standard_error:.4f}", f"{found.perplexity:.3f}"
            time = "" if run.train_time is None else format_duration(run.train_time)
            rows.append([str(workdir), *figures, f"{run.parameters:,}", str(run.step), time])
        print_table(columns, sorted(rows, key=lambda row: float(row[1])))
    else:
        (run,) = results
        print(f"checkpoint          {run.checkpoint}")
        print(f"loss                {run.evaluation.loss:.4f} nats/character")
        print(f"standard error      {run.evaluation.standard_error:.4f}")
        print(f"perplexity          {run.evaluation.perplexity:.4f}")
        print(f"bits per character  {run.evaluation.bits_per_character:.4f}")
        print(f"count               {run.evaluation.count}")
        for name, copy in run.copies.items():
            print(f"{name.replace('_', ' '):<19} {len(copy)} characters: {copy!r}")


if __name__ == "__main__":
    run_command(main)
