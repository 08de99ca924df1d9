"""Measure training, evaluation and sampling speed against the limits of this machine."""

from typing import Any

from shakegpt_jax.cli.command import dump_json, run_command, use_compilation_cache


def main() -> None:
    """Parse the arguments, measure and print."""
    from shakegpt_jax.cli.arguments import ConfigArgumentParser, named, whole_number

    parser = ConfigArgumentParser("shakegpt benchmark", __doc__)
    add = parser.add_argument
    add("--json", action="store_true", help="print one JSON object")
    works = ("train", "evaluate", "prefill", "sample")
    add("--work", choices=works, action="append", help="what to measure; may be repeated (all)")
    kind, help_text = whole_number(1, 100_000), "batch size to sample at; repeatable (1 and 32)"
    add("--sample_batch", type=kind, action="append", help=help_text)
    help_text = "double layers, width, window and batch instead, and measure the training step"
    add("--scaling", action="store_true", help=help_text)
    add("--plot", metavar="FILE", type=named, help="with --scaling: plot it; requires matplotlib")
    args, config, _ = parser.parse_config()
    if args.plot and not args.scaling:
        parser.error("--plot requires --scaling")
    if args.scaling and (args.work or args.sample_batch):
        parser.error("--scaling cannot be combined with --work or --sample_batch")

    from shakegpt_jax.data.corpus import load_corpus
    from shakegpt_jax.profiling.measurements import benchmark, measure_scaling
    from shakegpt_jax.reporting.curves import check_plot_path, plot_growth

    if args.plot:  # fails now rather than after minutes of measuring
        check_plot_path(args.plot)
    use_compilation_cache()
    if args.scaling:
        growth = measure_scaling(config)
        if args.json:
            print(dump_json({field: row[:2] for field, row in growth.items()}, indent=2))
        else:
            _print_growth(growth)
        if args.plot:
            plot_growth(growth, args.plot)
        return
    corpus = load_corpus(config.data.path, config.model.block_size)
    report = benchmark(config, corpus, args.work or works, args.sample_batch or [1, 32])
    if args.json:
        print(dump_json(report, indent=2))
    else:
        _print_report(report)


def _print_report(report: dict[str, Any]) -> None:
    from shakegpt_jax.reporting.terminal import print_table

    ceilings = report["ceilings"]
    print(", ".join(f"{name} {value}" for name, value in report["machine"].items()))
    print(
        f"ceilings: {ceilings['flops_per_second'] / 1e9:,.0f} GFLOP/s in a large matmul, "
        f"{ceilings['bytes_per_second'] / 1e9:,.0f} GB/s reading from memory,\n"
        f"  {ceilings['weights_bytes_per_second'] / 1e9:,.0f} GB/s reading "
        f"{ceilings['weights_bytes'] / 1e6:,.1f} MB, the size of the weights, maybe from a cache"
    )
    rows = []
    for row in report["results"]:
        unit = "flops" if "flops_per_second" in row else "bytes"
        seconds, rate = row["seconds"], row[f"{unit}_per_second"] / 1e9
        time = f"{seconds * 1e3:,.1f} ms" if seconds < 10 else f"{seconds:,.1f} s"
        achieved = f"{rate:,.1f} {'GFLOP' if unit == 'flops' else 'GB'}/s"
        ceiling = f"{row['share_of_ceiling']:.0%} of {'matmul' if unit == 'flops' else 'reading'}"
        rows.append([row["work"], time, f"{row['characters_per_second']:,.0f}", achieved, ceiling])
    print_table(["work", "time", "characters/s", "achieved", "ceiling"], rows)
    for row in report["results"]:
        if row["compile_seconds"] is not None:
            print(f"compilation of the train step {row['compile_seconds']:.1f} s")
    print(f"peak memory {report['peak_memory_bytes'] / 1e9:.2f} GB")


def _print_growth(growth: dict[str, tuple[list[int], list[float], float]]) -> None:
    from shakegpt_jax.profiling.measurements import EXPECTED_EXPONENTS
    from shakegpt_jax.reporting.terminal import print_table

    rows = []
    for field, (values, seconds, exponent) in growth.items():
        range_, times = f"{values[0]} to {values[-1]}", " ".join(f"{s * 1e3:.1f}" for s in seconds)
        rows.append([field, range_, times, f"{exponent:.2f} ({EXPECTED_EXPONENTS[field]:.0f})"])
    print_table(["doubled", "values", "ms per step", "exponent (expected)"], rows)


if __name__ == "__main__":
    run_command(main)
