"""Measure how the time of a training step grows with layers, width, window and batch."""

from shakegpt_jax.cli.command import run_command, use_compilation_cache


def main() -> None:
    """Parse the arguments, measure, print and plot."""
    import json

    from shakegpt_jax.cli.arguments import ConfigArgumentParser, named

    parser = ConfigArgumentParser(
        "python -m shakegpt_jax.scaling",
        "Measure how the time of a training step grows as layers, width, window and batch are "
        "doubled, one at a time.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--plot", metavar="FILE", type=named, help="write a plot; requires matplotlib"
    )
    args, config, _ = parser.parse_config()

    from shakegpt_jax.profiling.measurements import EXPECTED_EXPONENTS, exponent, measure_growth
    from shakegpt_jax.reporting.curves import check_plot_path, plot_growth
    from shakegpt_jax.reporting.terminal import print_table

    if args.plot is not None:  # fails now rather than after minutes of measuring
        check_plot_path(args.plot)
    use_compilation_cache()
    growth = {field: measure_growth(config, field) for field in EXPECTED_EXPONENTS}
    fits = {field: (*measured, exponent(*measured)) for field, measured in growth.items()}
    if args.json:
        print(json.dumps(growth, indent=2))
    else:
        rows = []
        for field, (values, seconds, fit) in fits.items():
            range_, times = f"{values[0]} to {values[-1]}", [f"{s * 1e3:.1f}" for s in seconds]
            rows.append(
                [field, range_, " ".join(times), f"{fit:.2f} ({EXPECTED_EXPONENTS[field]:.0f})"]
            )
        print_table(["doubled", "values", "ms per step", "exponent (expected)"], rows)
    if args.plot is not None:
        plot_growth(fits, args.plot)


if __name__ == "__main__":
    run_command(main)
