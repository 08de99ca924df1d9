"""The command line: arguments, exit codes, signals."""
