"""Uploads of an exported folder to the Hugging Face Hub, as ``push_to`` of its options says."""

import os
from collections.abc import Callable
from pathlib import Path

from bitnet_core.config.export import HFOptions
from bitnet_core.errors import CoreError


def hub_publisher(target: str, options: HFOptions) -> Callable[[Path], str]:
    """A function that uploads the folder `target` of the exports to ``options.push_to``; it gives the address."""

    def publish(out: Path) -> str:
        from huggingface_hub import HfApi

        api = HfApi(token=os.environ.get(options.token_env) or None)
        try:
            api.create_repo(options.push_to, private=options.private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=options.push_to, folder_path=out / target, commit_message=f"Export of {out.parent.name}"
            )
        # Its client lets errors of its HTTP library through, which is another one from version to version.
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise CoreError(
                f"{out / target} was written, but {options.push_to} did not take it: {reason}",
                f"check push_to and the token (the variable {options.token_env}, or `hf auth login`), then run again",
            ) from error
        return str(commit.commit_url)

    return publish
