"""What a user can mend, said in one line."""

import sys
from collections.abc import Callable


class UserError(ValueError):
    """Bad input: the message says what is wrong, what was given and what would be right."""


def run_command(main: Callable[[], None]) -> None:
    """Run a command's `main`; a `UserError` becomes one line on stderr and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
