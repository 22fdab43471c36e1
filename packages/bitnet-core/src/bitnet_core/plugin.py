"""What bitnet-core brings to the plugin system. Importing this loads no torch."""

from collections.abc import Iterable

from bitnet_core.config.evaluate import (
    FreeRunningOptions,
    JSONValidityOptions,
    LMEvalOptions,
    NoOptions,
    TextPerplexityOptions,
)
from bitnet_core.config.export import GGUFOptions, HFOptions, PackedOptions
from bitnet_core.config.loss import JensenShannonConfig, ReverseKLConfig, SampledConfig, TemperedConfig, TopKOtherConfig
from bitnet_core.hookspecs import BenchmarkPlugin, ExporterPlugin, LossPlugin, hookimpl
from bitnet_core.lazy import lazily
from bitnet_core.traces.target_kinds import sampled_misfit, tempered_misfit, topk_misfit


@hookimpl
def bitnet_losses() -> Iterable[LossPlugin]:
    return [
        LossPlugin(
            name="topk_other",
            options=TopKOtherConfig,
            load=lazily("bitnet_core.losses.chunked:load_loss"),
            misfit=topk_misfit,
            summary="KL over the teacher's top-K and the rest, both tempered, + CE + format",
        ),
        LossPlugin(
            name="reverse_kl",
            options=ReverseKLConfig,
            load=lazily("bitnet_core.losses.chunked:load_loss"),
            misfit=topk_misfit,
            summary="KL from student to teacher over the top-K and the rest, both tempered, + CE + format",
        ),
        LossPlugin(
            name="jsd",
            options=JensenShannonConfig,
            load=lazily("bitnet_core.losses.chunked:load_loss"),
            misfit=topk_misfit,
            summary="generalised Jensen-Shannon divergence over the top-K and the rest, both tempered, + CE + format",
        ),
        LossPlugin(
            name="tempered",
            options=TemperedConfig,
            load=lazily("bitnet_core.losses.chunked:load_loss"),
            misfit=tempered_misfit,
            summary="KL over the top-K and the rest of both whole distributions, tempered, + CE + format",
        ),
        LossPlugin(
            name="sampled",
            options=SampledConfig,
            load=lazily("bitnet_core.losses.chunked:load_loss"),
            misfit=sampled_misfit,
            summary="cross-entropy of draws from the teacher's whole distribution + CE + format",
        ),
    ]


@hookimpl
def bitnet_exporters() -> Iterable[ExporterPlugin]:
    return [
        ExporterPlugin(
            name="hf",
            options=HFOptions,
            load=lazily("bitnet_core.export.hf:hf_exporter"),
            summary="a folder that plain transformers opens, with 8-bit activations",
        ),
        ExporterPlugin(
            name="packed",
            options=PackedOptions,
            load=lazily("bitnet_core.export.packed:packed_exporter"),
            summary="two bits a weight, A8 or A4, for transformers with bitnet-core",
        ),
        ExporterPlugin(
            name="gguf",
            options=GGUFOptions,
            load=lazily("bitnet_core.export.gguf.write:gguf_exporter"),
            summary="Q2_0, TQ2_0, TQ1_0, F16 or F32 for llama.cpp, with a Modelfile for Ollama",
            requires=("gguf",),
            install="pip install 'bitnet-core[gguf]'",
        ),
    ]


@hookimpl
def bitnet_benchmarks() -> Iterable[BenchmarkPlugin]:
    return [
        BenchmarkPlugin(
            name="heldout",
            options=NoOptions,
            load=lazily("bitnet_core.benchmarks.heldout_and_agreement:load_heldout"),
            scores=("kl", "perplexity"),
            summary="KL to the teacher and perplexity on the held-out traces",
        ),
        BenchmarkPlugin(
            name="agreement",
            options=NoOptions,
            load=lazily("bitnet_core.benchmarks.heldout_and_agreement:load_agreement"),
            scores=("top1",),
            summary="how often the likeliest token is the teacher's, on the held-out traces",
        ),
        BenchmarkPlugin(
            name="json_validity",
            options=JSONValidityOptions,
            load=lazily("bitnet_core.benchmarks.json_validity:load_json_validity"),
            scores=("parsed", "valid"),
            check=lazily("bitnet_core.benchmarks.json_validity:check"),
            asks=lazily("bitnet_core.benchmarks.json_validity:asks"),
            summary="answers that are JSON, and JSON of the schema given with the prompt",
        ),
        BenchmarkPlugin(
            name="text_perplexity",
            options=TextPerplexityOptions,
            load=lazily("bitnet_core.benchmarks.text_perplexity:load_text_perplexity"),
            check=lazily("bitnet_core.benchmarks.text_perplexity:check"),
            summary="perplexity per byte on given texts, by kind: the teacher's own, foreign prose, code, JSON",
        ),
        BenchmarkPlugin(
            name="free_running",
            options=FreeRunningOptions,
            load=lazily("bitnet_core.benchmarks.free_running:load_free_running"),
            check=lazily("bitnet_core.benchmarks.free_running:check"),
            scores=("teacher_perplexity", "ended", "repetition", "json_parsed"),
            summary="answers by themselves: how likely the teacher finds them, their ends, repetition, JSON",
        ),
        BenchmarkPlugin(
            name="lm_eval",
            options=LMEvalOptions,
            load=lazily("bitnet_core.benchmarks.lm_eval:load_lm_eval"),
            check=lazily("bitnet_core.benchmarks.lm_eval:check"),
            summary="tasks of lm-evaluation-harness, and a small JSON task that needs no network",
            requires=("lm_eval",),
            install="pip install 'bitnet-core[lm-eval]'",
        ),
    ]
