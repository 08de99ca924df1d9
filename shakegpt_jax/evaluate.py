"""Evaluate trained models on a text: loss, perplexity, bits per character."""

from shakegpt_jax.cli.command import dump_json, run_command, use_compilation_cache

_OPTIONS = ("step", "split", "path", "stride", "characters")


def main() -> None:
    """Parse the arguments, evaluate and print."""
    from shakegpt_jax.checkpoints.run_folder import find_runs, short_names
    from shakegpt_jax.cli.arguments import ArgumentParser, named, whole_number
    from shakegpt_jax.errors import UserError

    parser = ArgumentParser("shakegpt evaluate", __doc__)
    parser.add_runs()
    parser.add_step()
    add = parser.add_argument
    add("--split", choices=("val", "train"), help="part of the training text (val)")
    help_text = (
        "another UTF-8 text, without new characters; with --split: where the training text is"
    )
    add("--path", type=named, help=help_text)
    add("--stride", type=int, help="characters from window to window; smaller is slower")
    kind, help_text = (
        whole_number(0, 2**31 - 1),
        "characters to score; 0: all (as in training)",
    )
    add("--characters", type=kind, help=help_text)
    add("--json", action="store_true", help="print one JSON object per run")
    add("--memorization", action="store_true", help="find the longest copy of training text")
    add("--html", metavar="FILE", type=named, help="write a page with predictions and attention")
    args = parser.parse_args()
    workdirs = find_runs(args.runs + args.workdir)
    if args.html and len(workdirs) > 1:
        parser.error(f"--html shows one run, and these are {len(workdirs)}; give one --workdir")

    from shakegpt_jax.inference.evaluation import describe, scored_text, select, table_row
    from shakegpt_jax.reporting.terminal import differing_settings, print_table
    from shakegpt_jax.web.page import check_page_path
    from shakegpt_jax.web.report import write_report

    use_compilation_cache()
    if args.html:
        check_page_path(args.html)  # before anything is computed
    options = {name: getattr(args, name) for name in _OPTIONS}
    results, configs, failures = {}, {}, []
    for workdir in map(str, workdirs):
        try:
            chosen = select(workdir, **options)
            copies = chosen.longest_copies() if args.memorization else {}
            run = write_report(chosen, args.html) if args.html else chosen.evaluate()
            results[workdir] = run | copies
            configs[workdir] = chosen.lm.config
        except UserError as error:  # the other runs are still worth a row
            failures.append(str(error) if len(workdirs) == 1 else f"{workdir}: {error}")
    if args.json:
        for run in results.values():
            print(dump_json(run))
    elif len(workdirs) > 1 and results:
        names = short_names(results)
        rows = {each: {"run": names[each]} | table_row(results[each]) for each in results}
        by_text: dict[tuple[str, int], list[str]] = {}
        for workdir in sorted(results, key=lambda each: results[each]["loss"]):
            run = results[workdir]
            by_text.setdefault((run["text_sha256"], run["count"]), []).append(workdir)
        for inside in by_text.values():
            print_table(list(rows[inside[0]]), [list(rows[each].values()) for each in inside])
            print(f"text: {scored_text(results[inside[0]])}")
        if len(by_text) > 1:
            print("Losses on different texts cannot be compared.")
        for line in differing_settings({names[each]: configs[each] for each in configs}):
            print(line)
    else:
        for run in results.values():
            print(describe(run))
            if args.html:
                print(f"{'page':<19} {args.html}")
    if failures:
        raise UserError("; ".join(failures))


if __name__ == "__main__":
    run_command(main)
