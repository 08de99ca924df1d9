"""Plot the training and validation losses of runs; requires matplotlib."""

from shakegpt_jax.command_line.entry_point import run_command


def main() -> None:
    """Parse the arguments and plot."""
    from shakegpt_jax.checkpoints.run_folder import find_runs
    from shakegpt_jax.command_line.arguments import ArgumentParser, named

    parser = ArgumentParser(
        "python -m shakegpt_jax.plot", "Plot the training and validation losses of runs."
    )
    parser.add_runs()
    parser.add_argument("--output", type=named, help="plot file (losses.png in the first run)")
    args = parser.parse_args()

    from shakegpt_jax.reporting.curves import plot_losses
    from shakegpt_jax.reporting.metrics_file import read_metrics

    workdirs = find_runs(args.workdir)
    output = args.output or workdirs[0] / "losses.png"
    plot_losses({str(workdir): read_metrics(workdir) for workdir in workdirs}, output)
    print(output)


if __name__ == "__main__":
    run_command(main)
