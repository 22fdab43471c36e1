from training_fixtures import bpe_traces, other_traces, run, sequence_traces, settings, student, traces  # noqa: F401 -- fixtures
