"""What bitnet-providers brings to the plugin system."""

from collections.abc import Iterable
from pathlib import Path

from bitnet_providers.config import LocalTeacherConfig
from bitnet_providers.contract import TeacherPlugin
from bitnet_providers.hookspecs import hookimpl
from bitnet_providers.hosted.plugin import HOSTED_TEACHERS
from bitnet_providers.lazy import lazily
from bitnet_providers.local.capabilities import LOCAL_CAPABILITIES
from bitnet_providers.openai_shape import plugin as openai_shape


def _model_folder(options: LocalTeacherConfig) -> Path:
    from bitnet_providers.local.model_source import model_folder

    return model_folder(options.model)


def _check_local(options: LocalTeacherConfig) -> list[str]:
    from bitnet_providers.local.device_check import device_problems
    from bitnet_providers.local.model_source import problems

    return problems(options.model) + device_problems(options.device)


@hookimpl
def bitnet_teachers() -> Iterable[TeacherPlugin]:
    return [
        TeacherPlugin(
            name="local",
            options=LocalTeacherConfig,
            capabilities=LOCAL_CAPABILITIES,
            open=lazily("bitnet_providers.local.teacher:open_local"),
            summary="a model on this machine, through transformers; SmolLM2-135M-Instruct out of a wheel by default",
            requires=("torch", "transformers", "accelerate", "gguf"),
            install="pip install 'bitnet-providers[local]'",
            model_folder=_model_folder,
            check=_check_local,
        ),
        *HOSTED_TEACHERS,
        *openai_shape.PLUGINS,
    ]
