"""The section of both cards on what the teacher's makers allow."""

from collections.abc import Iterator

from bitnet_cli.publishing.parents_and_licences import Origin, Parent
from bitnet_cli.report.blocks import Block, Bullets, Heading, Text


def terms_blocks(origin: Origin, what: str) -> Iterator[Block]:
    """`what` begins the sentence: "This model"."""
    yield Heading("Terms of use")
    names = " and ".join(each.title for each in origin.parents()) or "its teacher"
    yield Text(
        f"{what} holds what was learned from {names}. Before you use or share it, read the terms of that model and of "
        "the service that served it: some forbid training other models on their output, some ask for their name or "
        "licence to be carried on."
    )
    if known := tuple(_terms(each) for each in origin.parents()):
        yield Bullets(known)


def _terms(parent: Parent) -> str:
    if parent.is_service:
        return f"{parent.title}: the terms of that service."
    if not parent.licence:
        return f"{parent.title}: its licence is not stated here; see its makers' page."
    words = [parent.licence.get("license_name") or parent.licence.get("license", "")]
    if link := parent.licence.get("license_link"):
        words.append(link)
    return f"{parent.title}: {', '.join(words)}, as its card on the Hub says."
