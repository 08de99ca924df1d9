"""Measure training and sampling speed against the limits of this machine."""

from shakegpt_jax.cli.command import run_command, use_compilation_cache

_MAX_SAMPLE_BATCH = 100_000


def main() -> None:
    """Parse the arguments, measure and print."""
    import json

    from shakegpt_jax.cli.arguments import ConfigArgumentParser

    parser = ConfigArgumentParser(
        "shakegpt benchmark",
        "Measure a training step, evaluation, prefill and sampling. Compare each with a large "
        "matmul and the memory bandwidth of this machine.",
    )
    add = parser.add_argument
    add("--json", action="store_true", help="print one JSON object")
    add(
        "--sample_batch",
        type=int,
        action="append",
        help="batch size to sample at; may be repeated (1 and 32)",
    )
    args, config, _ = parser.parse_config()
    for size in args.sample_batch or ():
        if not 1 <= size <= _MAX_SAMPLE_BATCH:
            parser.error(f"--sample_batch is {size}; it must be from 1 to {_MAX_SAMPLE_BATCH}")

    from shakegpt_jax.data.corpus import load_corpus
    from shakegpt_jax.profiling.measurements import benchmark
    from shakegpt_jax.reporting.terminal import print_table

    use_compilation_cache()
    corpus = load_corpus(config.data.path, config.model.block_size)
    report = benchmark(config, corpus, args.sample_batch or [1, 32])
    if args.json:
        print(json.dumps(report, indent=2))
        return
    ceilings = report["ceilings"]
    print(", ".join(f"{name} {value}" for name, value in report["machine"].items()))
    print(
        f"ceilings: {ceilings['flops_per_second'] / 1e9:,.0f} GFLOP/s in a large matmul, "
        f"{ceilings['bytes_per_second'] / 1e9:,.0f} GB/s of memory bandwidth"
    )
    rows = []
    for row in report["results"]:
        unit = "flops" if "flops_per_second" in row else "bytes"
        seconds, rate = row["seconds"], row[f"{unit}_per_second"] / 1e9
        time = f"{seconds * 1e3:,.1f} ms" if seconds < 10 else f"{seconds:,.1f} s"
        achieved = f"{rate:,.1f} {'GFLOP' if unit == 'flops' else 'GB'}/s"
        speed = f"{row['characters_per_second']:,.0f}"
        rows.append([row["work"], time, speed, achieved, f"{row['share_of_ceiling']:.0%}"])
    print_table(["work", "time", "characters/s", "achieved", "of ceiling"], rows)
    print(f"compilation of the train step {report['results'][0]['compile_seconds']:.1f} s")
    print(f"peak memory {report['peak_memory_bytes'] / 1e9:.2f} GB")


if __name__ == "__main__":
    run_command(main)
