"""KD traces as tensors: a run's Parquet shards, or any that keep docs/kd-shard.md, in a PyTorch DataLoader.

    uv run bitnet run manifests/quickstart.toml --stages storage,baseline,collect,project
    uv run python examples/traces_to_tensors.py runs/quickstart/data

Needs bitnet-core alone: neither the teacher nor the command line.
"""

import sys
from functools import partial

from torch import Tensor
from torch.utils.data import DataLoader

from bitnet_core import KDTraceDataset, collate_fn


def main(folder: str) -> dict[str, Tensor]:
    """The first batch of the training split."""
    traces = KDTraceDataset(folder, split="train", max_seq_len=128, max_topk=8)
    print(f"{len(traces)} documents, {traces.lengths.sum()} positions, K = {traces.k}, V = {traces.vocab_size}")
    print(f"target: {traces.target}; made from: {traces.metadata.projection if traces.metadata else 'unknown'}")

    loader = DataLoader(traces, batch_size=2, shuffle=True, collate_fn=partial(collate_fn, pad_token_id=0))
    batch = next(iter(loader))
    for name, tensor in batch.items():
        print(f"  {name:18} {str(tensor.dtype).removeprefix('torch.'):8} {list(tensor.shape)}")

    # Row t holds token t and the K + 1 masses that it was drawn from: they sum to 1 wherever there is a distribution.
    mass_BT = batch["topk_logprobs"].exp().sum(-1) + batch["other_logprob"].exp()
    print(f"masses of {int(batch['has_kd'].sum())} distributions: {mass_BT[batch['has_kd']].mean():.4f} on the average")
    return batch


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart/data")
