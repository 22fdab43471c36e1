from trace_fixtures import (  # noqa: F401 -- fixtures
    completion,
    other_tokenizer_folder,
    random_raw,
    tokenizer,
    tokenizer_folder,
    write_raw,
)
