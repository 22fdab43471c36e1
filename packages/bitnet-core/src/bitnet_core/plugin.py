"""What bitnet-core brings to the plugin system. Importing this loads no torch."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from bitnet_core.benchmarks.config import JSONValidityOptions, LMEvalOptions, NoOptions
from bitnet_core.export.config import GGUFOptions, HFOptions, PackedOptions
from bitnet_core.hookspecs import BenchmarkPlugin, Exporter, ExporterPlugin, LossPlugin, hookimpl
from bitnet_core.loss_config import JensenShannonConfig, ReverseKLConfig, SampledConfig, TemperedConfig, TopKOtherConfig
from bitnet_core.loss_fit import sampled_misfit, tempered_misfit, topk_misfit

if TYPE_CHECKING:
    from bitnet_core.benchmarks.contract import Benchmark


def _load_topk_other(options: TopKOtherConfig) -> Callable[..., Any]:
    from bitnet_core.chunked_loss import load_topk_other

    return load_topk_other(options)


def _load_reverse_kl(options: ReverseKLConfig) -> Callable[..., Any]:
    from bitnet_core.chunked_loss import load_reverse_kl

    return load_reverse_kl(options)


def _load_jsd(options: JensenShannonConfig) -> Callable[..., Any]:
    from bitnet_core.chunked_loss import load_jsd

    return load_jsd(options)


def _load_tempered(options: TemperedConfig) -> Callable[..., Any]:
    from bitnet_core.chunked_loss import load_tempered

    return load_tempered(options)


def _load_sampled(options: SampledConfig) -> Callable[..., Any]:
    from bitnet_core.chunked_loss import load_sampled

    return load_sampled(options)


@hookimpl
def bitnet_losses() -> Iterable[LossPlugin]:
    return [
        LossPlugin(
            name="topk_other",
            options=TopKOtherConfig,
            load=_load_topk_other,
            misfit=topk_misfit,
            summary="KL over the teacher's top-K and the rest, both tempered, + CE + format",
        ),
        LossPlugin(
            name="reverse_kl",
            options=ReverseKLConfig,
            load=_load_reverse_kl,
            misfit=topk_misfit,
            summary="KL from student to teacher over the top-K and the rest, both tempered, + CE + format",
        ),
        LossPlugin(
            name="jsd",
            options=JensenShannonConfig,
            load=_load_jsd,
            misfit=topk_misfit,
            summary="generalised Jensen-Shannon divergence over the top-K and the rest, both tempered, + CE + format",
        ),
        LossPlugin(
            name="tempered",
            options=TemperedConfig,
            load=_load_tempered,
            misfit=tempered_misfit,
            summary="KL over the top-K and the rest of both whole distributions, tempered, + CE + format",
        ),
        LossPlugin(
            name="sampled",
            options=SampledConfig,
            load=_load_sampled,
            misfit=sampled_misfit,
            summary="cross-entropy of draws from the teacher's whole distribution + CE + format",
        ),
    ]


def _load_hf(options: HFOptions) -> Exporter:
    from bitnet_core.export.hf import hf_exporter

    return hf_exporter(options)


def _load_packed(options: PackedOptions) -> Exporter:
    from bitnet_core.export.packed import packed_exporter

    return packed_exporter(options)


def _load_gguf(options: GGUFOptions) -> Exporter:
    from bitnet_core.export.gguf.exporter import gguf_exporter

    return gguf_exporter(options)


@hookimpl
def bitnet_exporters() -> Iterable[ExporterPlugin]:
    return [
        ExporterPlugin(
            name="hf",
            options=HFOptions,
            load=_load_hf,
            summary="a folder that plain transformers opens, with 8-bit activations",
        ),
        ExporterPlugin(
            name="packed",
            options=PackedOptions,
            load=_load_packed,
            summary="two bits a weight, A8 or A4, for transformers with bitnet-core",
        ),
        ExporterPlugin(
            name="gguf",
            options=GGUFOptions,
            load=_load_gguf,
            summary="TQ2_0, TQ1_0, F16 or F32 for llama.cpp, with a Modelfile for Ollama",
            requires=("gguf",),
            install="pip install 'bitnet-core[gguf]'",
        ),
    ]


def _load_heldout(options: NoOptions) -> "Benchmark":
    from bitnet_core.benchmarks.heldout import load_heldout

    return load_heldout(options)


def _load_agreement(options: NoOptions) -> "Benchmark":
    from bitnet_core.benchmarks.heldout import load_agreement

    return load_agreement(options)


def _load_json_validity(options: JSONValidityOptions) -> "Benchmark":
    from bitnet_core.benchmarks.json_validity import load_json_validity

    return load_json_validity(options)


def _check_json_validity(options: JSONValidityOptions) -> Iterable[str]:
    from bitnet_core.benchmarks.json_validity import check

    return check(options)


def _json_validity_asks(options: JSONValidityOptions) -> tuple[int, int]:
    from bitnet_core.benchmarks.json_validity import asks

    return asks(options)


def _load_lm_eval(options: LMEvalOptions) -> "Benchmark":
    from bitnet_core.benchmarks.lm_eval_adapter import load_lm_eval

    return load_lm_eval(options)


def _check_lm_eval(options: LMEvalOptions) -> Iterable[str]:
    from bitnet_core.benchmarks.lm_eval_adapter import check

    return check(options)


@hookimpl
def bitnet_benchmarks() -> Iterable[BenchmarkPlugin]:
    return [
        BenchmarkPlugin(
            name="heldout",
            options=NoOptions,
            load=_load_heldout,
            scores=("kl", "perplexity"),
            summary="KL to the teacher and perplexity on the held-out traces",
        ),
        BenchmarkPlugin(
            name="agreement",
            options=NoOptions,
            load=_load_agreement,
            scores=("top1",),
            summary="how often the likeliest token is the teacher's, on the held-out traces",
        ),
        BenchmarkPlugin(
            name="json_validity",
            options=JSONValidityOptions,
            load=_load_json_validity,
            scores=("parsed", "valid"),
            check=_check_json_validity,
            asks=_json_validity_asks,
            summary="answers that are JSON, and JSON of the schema given with the prompt",
        ),
        BenchmarkPlugin(
            name="lm_eval",
            options=LMEvalOptions,
            load=_load_lm_eval,
            check=_check_lm_eval,
            summary="tasks of lm-evaluation-harness, and a small JSON task that needs no network",
            requires=("lm_eval",),
            install="pip install 'bitnet-core[lm-eval]'",
        ),
    ]
