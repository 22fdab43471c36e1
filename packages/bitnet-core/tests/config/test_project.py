import subprocess
import sys

import attrs
import pytest

from bitnet_core.config.project import ProjectConfig


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("holdout_fraction", 0.0, "holdout_fraction is 0.0; it must lie between 0 and 1"),
        ("holdout_fraction", 1.0, "holdout_fraction is 1.0; it must lie between 0 and 1"),
        ("rows_per_shard", 0, "'rows_per_shard' must be >= 1"),
        ("tokenizer", "", "tokenizer is empty; set"),
    ],
)
def test_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProjectConfig(**{field: value})  # type: ignore[arg-type]


def test_every_field_is_described() -> None:
    fields = attrs.fields(ProjectConfig)
    assert all(field.metadata["help"] for field in fields)
    assert [field.name for field in fields if field.metadata["path"]] == ["tokenizer", "chat_template"]


def test_reading_a_configuration_loads_nothing_heavy() -> None:
    program = (
        "import sys, bitnet_core.traces, bitnet_core.config.project\n"
        "print(sorted({'torch', 'pyarrow', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    import bitnet_core.traces as traces

    for name in traces.__all__:
        assert getattr(traces, name).__module__.startswith("bitnet_core.traces") or name in ("KDBatch", "ProjectConfig")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = traces.nothing
