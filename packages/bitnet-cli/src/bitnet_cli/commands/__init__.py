"""The subcommands of `bitnet`, one module each."""
