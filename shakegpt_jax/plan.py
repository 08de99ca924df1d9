"""Plan a run on GPUs that are not there: memory, collectives, time, largest batch."""

from shakegpt_jax.cli.command import dump_json, run_command


def main() -> None:
    """Parse the arguments, compile and print."""
    from shakegpt_jax.cli.arguments import ConfigArgumentParser, whole_number

    parser = ConfigArgumentParser(
        "shakegpt plan",
        "Compile the train step for GPUs that need not be there (with the extra `plan`; otherwise "
        "for virtual CPU devices) and print what it needs. Nothing runs.",
    )
    add = parser.add_argument
    add("--gpu", default="h100", help="a100, h100 (default) or h200")
    add("--nodes", type=whole_number(1, 1_000), default=1, help="machines (1)")
    add("--gpus_per_node", type=whole_number(1, 1_000), default=1, help="GPUs in each (1)")
    add("--network", type=float, default=50.0, help="GB/s from each GPU to other nodes (50)")
    add("--json", action="store_true", help="print one JSON object")
    args, config, _ = parser.parse_config()
    if not 0 < args.network < float("inf"):
        parser.error(f"--network is {args.network}; it must be above 0")

    from shakegpt_jax.profiling.gpu import load_gpu
    from shakegpt_jax.profiling.plan import MEMORY_FRACTION, plan, planned_devices
    from shakegpt_jax.reporting.terminal import print_table

    gpu = load_gpu(args.gpu)
    devices = planned_devices(gpu, args.nodes, args.gpus_per_node)
    report = plan(config, gpu, devices, args.gpus_per_node, args.network * 1e9)
    if args.json:
        print(dump_json(report, indent=2))
        return
    axes = ", ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    print(f"compiled for {report['compiled_for']}: {axes}")
    if "CPU" in report["compiled_for"]:
        print(
            "A GPU's program stores and sends less. To compile it: pip install 'shakegpt-jax[plan]'"
        )
    print("Attention is in JAX. cuDNN's, which cannot be tried without a GPU, needs less memory.")
    print(f"{report['parameters']:,} parameters, batch {report['batch_size']:,}\n")
    parts = [("parameters", "parameter"), ("optimizer", "optimizer")]
    parts += [("gradients and temporaries", "temporary"), ("peak", "peak")]
    rows = [[name, f"{report[f'{key}_bytes_per_device'] / 1e9:.2f}"] for name, key in parts]
    print_table(["memory per device", "GB"], rows)
    print()
    rows = [
        [kind, f"{each['count']:,}", f"{each['bytes_sent'] / 1e6:,.1f}"]
        for kind, each in report["collectives_per_step"].items()
    ]
    rows.append(["total", "", f"{report['collective_bytes_per_step'] / 1e6:,.1f}"])
    print_table(["collectives per step", "count", "MB sent per device"], rows)
    print()
    amounts = {
        "compute": f"{report['flops_per_step'] / report['devices'] / 1e12:,.2f} TFLOP",
        "memory": f"{report['memory_traffic_per_step'] / 1e9:,.1f} GB",
        "network": f"{report['collective_bytes_per_step'] / 1e9:,.2f} GB",
    }
    seconds = report["roofline_seconds"]
    rows = [[name, amounts[name], f"{seconds[name] * 1e3:,.2f}"] for name in amounts]
    print_table(["least time per step", "per device", "ms"], rows)
    print(f"bound by {report['bound']}, if the three overlap: a real step takes longer")
    memory = f"{MEMORY_FRACTION:.0%} of {gpu.memory / 1e9:.1f} GB, which JAX allocates"
    print(f"\nlargest batch {report['largest_batch_size']:,}, in {memory}")


if __name__ == "__main__":
    run_command(main)
