"""How raw shards become KD traces: the manifest's ``[project]``. Importing this loads no torch and no pyarrow."""

from typing import Any

import attrs

from bitnet_core.settings import setting


def _tokenizer_named(instance: Any, attribute: Any, value: str) -> None:
    if not value:
        raise ValueError('tokenizer is empty; set "teacher" or the path of a tokenizer folder')


def _a_part(instance: Any, attribute: Any, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise ValueError(f"{attribute.name} is {value}; it must lie between 0 and 1, both excluded (such as 0.1)")


@attrs.frozen(kw_only=True)
class ProjectConfig:
    """What the projection needs to know beside its folders."""

    tokenizer: str = setting(
        default="teacher",
        help='the student\'s tokenizer: "teacher", a folder with a tokenizer.json, or a name on the Hugging Face Hub',
        path=True,
        hub=True,
        validator=_tokenizer_named,
    )
    holdout_fraction: float = setting(
        default=0.1, help="share of the documents kept away from training, for the evaluation", validator=_a_part
    )
    alignment: str = setting(
        default="auto",
        help='"auto": by id where the tokenizer is the teacher\'s, else by bytes; "bytes": always by bytes',
        validator=attrs.validators.in_(("auto", "bytes")),
    )
    sampled_span: str = setting(
        default="product",
        help="a student token that spans several of the teacher's gets their joint probability (product), or the "
        "teacher's mass goes to the first sub-token of the first one, whatever stands in the text (first_subtoken)",
        validator=attrs.validators.in_(("product", "first_subtoken")),
    )
    chat_template: str = setting(
        default="", help="a file with the student's chat template (Jinja); empty: the tokenizer's own", path=True
    )
    unknown_in_ce: bool = setting(
        default=False,
        help="whether cross-entropy also teaches what stands for characters that the student's tokenizer has no token "
        "for (<unk>)",
    )
    rows_per_shard: int = setting(
        default=262_144,
        help="token positions in one KD shard at most (a document is never cut)",
        validator=attrs.validators.ge(1),
    )
