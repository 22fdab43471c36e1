"""What `evaluate.runtime` may say. `bitnet_core.runtime.kinds` has a record for each; this imports nothing."""

RUNTIME_NAMES = ("torch", "llamacpp", "packed")
