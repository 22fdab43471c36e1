"""What `collect.prompt_template` and `collect.system_prompt` make of a row's messages."""

from bitnet_providers.config import CollectConfig
from bitnet_providers.contract import Message


def asked(messages: tuple[Message, ...], config: CollectConfig) -> tuple[Message, ...]:
    """A prompt's messages as the teacher is asked."""
    if config.prompt_template is not None:
        last = messages[-1]
        content = config.prompt_template.replace("{prompt}", last["content"])  # not format(): braces are common in both
        messages = (*messages[:-1], {**last, "content": content})
    return with_system_prompt(messages, config.system_prompt)


def with_system_prompt(messages: tuple[Message, ...], system_prompt: str | None) -> tuple[Message, ...]:
    """With a system prompt, where they have none of their own. A plain text (no messages) stays plain."""
    if system_prompt is None or not messages or messages[0]["role"] == "system":
        return messages
    return ({"role": "system", "content": system_prompt}, *messages)
