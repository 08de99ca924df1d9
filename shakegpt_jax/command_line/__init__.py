"""Arguments, config files, exit codes and signals, shared by all commands. Imports no JAX."""
