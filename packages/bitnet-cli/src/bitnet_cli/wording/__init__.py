"""Words of messages: nothing secret, values as TOML writes them, the nearest name to a mistyped one."""
