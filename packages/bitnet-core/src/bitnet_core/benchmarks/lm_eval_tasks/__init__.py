"""Tasks for lm-evaluation-harness that need no network: name this folder with ``--include_path``."""
