"""Tells bitnet that there is a teacher called ``echo``."""

from collections.abc import Iterable

import attrs
from attrs.validators import and_, gt, lt

from bitnet_providers.contract import Capabilities, Teacher, TeacherPlugin
from bitnet_providers.hookspecs import hookimpl
from bitnet_providers.settings import setting

CAPABILITIES = Capabilities(max_top_logprobs=9, token_ids=False, token_bytes=True, scoring=False, external=False)


@attrs.frozen(kw_only=True)
class EchoConfig:
    """``[teacher] kind = "echo"``"""

    p_next: float = setting(0.9, validator=and_(gt(0.5), lt(1.0)), help="probability of the word that is said")


def _open(options: EchoConfig) -> Teacher:
    from bitnet_provider_echo.teacher import EchoTeacher

    return EchoTeacher(options)


@hookimpl
def bitnet_teachers() -> Iterable[TeacherPlugin]:
    return [
        TeacherPlugin(
            name="echo",
            options=EchoConfig,
            capabilities=CAPABILITIES,
            open=_open,
            summary="repeats the last user message; a toy with a stated distribution",
        )
    ]
