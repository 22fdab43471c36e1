"""Options of the built-in exporters: the manifest's ``[export.NAME]`` tables. Importing this loads no torch."""

from typing import Literal

import attrs

from bitnet_core.settings import setting

GGUFType = Literal["q2_0", "tq2_0", "tq1_0", "f16", "f32"]


def _some(_: object, attribute: "attrs.Attribute[tuple[str, ...]]", value: tuple[str, ...]) -> None:
    if not value or len(set(value)) != len(value):
        raise ValueError(f"{attribute.name} names each type once, at least one")


@attrs.frozen(kw_only=True)
class HFOptions:
    """A folder that plain transformers opens, with 8-bit activations."""

    push_to: str = setting(default="", help='upload to this Hub repository, "user/name"; empty: nothing is uploaded')
    private: bool = setting(default=True, help="a repository that the upload makes is private")
    token_env: str = setting(
        default="HF_TOKEN", help="variable that holds the Hub's token; unset: what `hf auth login` stored"
    )

    def __attrs_post_init__(self) -> None:
        if self.push_to and self.push_to.count("/") != 1:
            raise ValueError(f'push_to = "{self.push_to}" must be "user/name"')


@attrs.frozen(kw_only=True)
class PackedOptions:
    """A folder that transformers opens with bitnet-core installed: two bits a weight, A8 or A4 as trained."""


@attrs.frozen(kw_only=True)
class GGUFOptions:
    """Files for llama.cpp and what builds on it."""

    types: tuple[GGUFType, ...] = setting(
        default=("tq2_0", "q2_0"),
        help="one file each, the first for the Modelfile: tq2_0 (quick on CPUs), q2_0 (Metal, Vulkan, CUDA), tq1_0 "
        "(smallest), f16 and f32 (no activation quantisation: for checks)",
        validator=_some,
    )
