"""What a training is given (`Job`), and all that it works with, opened from that: device, traces, model, optimizer."""

import hashlib
import os
import platform
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import torch
from transformers import PreTrainedModel

from bitnet_core.config.calibration import calibrated_student
from bitnet_core.config.loss import IntermediateConfig
from bitnet_core.config.student import StudentConfig, without_effect
from bitnet_core.config.train import CHECKPOINT_START, RANDOM_START, TERNARY_START, TrainConfig
from bitnet_core.distributed import ALONE, ProcessGroup, join_process_group, on_meta, shard, whole
from bitnet_core.errors import CoreError
from bitnet_core.hardware import autocast_dtype, give_freed_memory_back, keep_freed_memory, move
from bitnet_core.model.end_tokens import configured_ends, set_end_tokens
from bitnet_core.model.find_layers_and_head import decoder, decoder_layers, set_activation_bits
from bitnet_core.model.init_from import freeze_embeddings, starting_folder
from bitnet_core.model.read_checkpoint import TrainingState
from bitnet_core.model.start_sharded import RowStart, fill, start_by_rows
from bitnet_core.model.start_student import llama_shaped, start_student
from bitnet_core.traces.dataset import KDTraceDataset
from bitnet_core.traces.tokenizer import end_tokens, load_tokenizer
from bitnet_core.traces.tokenizer_files import read_template
from bitnet_core.training.data_checks import Targets, beyond_context, find_targets, what_is_lacking
from bitnet_core.training.intermediate_loss import Intermediate, open_intermediate
from bitnet_core.training.metrics import Track, keep_rows_up_to, open_trackers
from bitnet_core.training.optimizer import make_optimizer
from bitnet_core.training.save_and_resume import Resumed, restore, resume
from bitnet_core.training.schedule import TokenSchedule, how_it_goes_on, left_unfinished, token_schedule
from bitnet_core.training.sharded_checkpoint import read_shards
from bitnet_core.training.step import Learner, Loss, checkpoint_activations
from bitnet_core.weight_format import is_ternary


@attrs.frozen(kw_only=True)
class Job:
    """One training. Paths may be given as strings."""

    data_folder: Path = attrs.field(converter=Path)
    """KD traces."""
    tokenizer_folder: Path = attrs.field(converter=Path)
    """The student's tokenizer."""
    chat_template: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))
    """A file with the chat template that the checkpoint's tokenizer has instead of its own."""
    teacher_folder: Path | None = attrs.field(converter=attrs.converters.optional(Path))
    """The weights of a student that starts from its teacher's (``student.init_from``)."""
    calibrated_start: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))
    """The checkpoint that the student's calibration has made: it starts from that one instead."""
    intermediate_teacher: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))
    """The model that `intermediate` compares inner layers with."""
    checkpoint_folder: Path = attrs.field(converter=Path)
    metrics_file: Path = attrs.field(converter=Path)
    """Logs and trackers write beside it."""
    seed: int
    fingerprint: str
    """Names everything that shapes the training (data, student, loss, settings). Checkpoints with the same one are
    gone on from; those with another belong to another training and are set aside."""
    lineage: str | None = None
    """The same without ``steps`` and ``budget_tokens``: where these are raised, a training with this one is gone on
    from. None: with none."""
    student: StudentConfig
    loss: Loss
    train: TrainConfig
    intermediate: IntermediateConfig | None = None
    """Terms on the inner layers beside `loss`."""


@attrs.frozen(kw_only=True, eq=False)
class Session:
    """A training before its first step, or where it goes on."""

    job: Job
    group: ProcessGroup
    dtype: torch.dtype
    """That of autocast."""
    traces: KDTraceDataset
    heldout: KDTraceDataset
    has_kd: bool
    """Whether any training position has a teacher distribution."""
    lacking: list[str]
    """What the user should know of the traces, the student's settings and the schedule."""
    schedule: TokenSchedule
    resumed: Resumed | None
    others: list[str]
    """What became of other trainings: their checkpoints were set aside, or it goes on from one, and what that means for
    the schedule."""
    model: PreTrainedModel
    state: TrainingState
    learner: Learner
    track: Track
    template: str | None
    """The chat template that the checkpoint's tokenizer has instead of its own."""

    @property
    def flip(self) -> str:
        """Where activations go to 4 bits: as `TokenSchedule.flip`, or what was before that."""
        if self.job.student.activation_bits <= 4:
            return "never: activations have 4 bits from the start"
        first, done = self.schedule.first_at_four_bits(), self.state.step
        if self.state.bits <= 4 and (first is None or first > done):
            return f"by step {done}, in the shorter training that this one goes on from"
        return self.schedule.flip()


@contextmanager
def open_session(job: Job) -> Iterator[Session]:
    """Join the other processes, read the traces, build the student or take it from its newest checkpoint.

    Raises CoreError where nothing can be learnt or read.
    """
    torch.manual_seed(job.seed)
    settings = job.train.begun_from(kind_of_start(job))
    with join_process_group() as group, settings_of(settings), ExitStack() as stack:
        keep_freed_memory() if group.size == 1 else give_freed_memory_back()
        names = settings.track if group.is_first else ()
        dtype = autocast_dtype(settings.precision, group.device)
        traces, heldout = (open_traces(job, split) for split in ("train", "heldout"))
        found = find_targets(traces, job.data_folder, settings.max_seq_len)
        schedule = token_schedule(traces.lengths, settings, job.seed, traces.windows)
        check_processes(job, group)
        others: list[str] = []
        plan = {"lineage": job.lineage, "steps": settings.steps, "budget_tokens": schedule.budget}
        resumed = resume(job.checkpoint_folder, job.fingerprint, plan, others.append, group)
        job = attrs.evolve(job, train=as_it_began(job, settings, resumed, schedule, others.append))
        plan["ternary_warmup_steps"] = job.train.ternary_warmup_steps
        start = None if resumed is not None or group.size == 1 else rows_to_read(job, traces)
        if resumed is not None:
            model, state = resumed.model, resumed.state
        else:
            model = start.model if start is not None else new_student(job, traces)
            state = before_the_first_step(job, traces)
        state = attrs.evolve(state, fingerprint=job.fingerprint, plan=plan)
        if group.is_first:
            keep_rows_up_to(job.metrics_file, state.step)
        track = open_trackers(names, job.metrics_file.parent, attrs.asdict(job.train), stack, state.step)
        template = None if job.chat_template is None else read_template(job.chat_template)
        set_end_tokens(model, ends_that_are_learned(job.tokenizer_folder, template, model))
        model = (model if on_meta(model) else move(model, group.device)).train()
        set_activation_bits(model, state.bits)
        learner = open_learner(job, model, group, dtype, start)
        if resumed is not None:
            moments = resumed.moments or read_shards(resumed.folder, model)
            restore(moments, model, learner.optimizer)
            if state.scaler is not None:
                learner.scaler.load_state_dict(dict(state.scaler))
        else:
            state = attrs.evolve(state, start={"kind": name_of_start(job), "digest": weights_sha256(model, group)})
        yield Session(
            job=job,
            group=group,
            dtype=dtype,
            traces=traces,
            heldout=heldout,
            has_kd=found.has_kd,
            lacking=[*what_to_know(job, found, schedule), *beyond_context(model, traces)],
            schedule=schedule,
            resumed=resumed,
            others=others,
            model=model,
            state=state,
            learner=learner,
            track=track,
            template=template,
        )


def open_traces(job: Job, split: str) -> KDTraceDataset:
    return KDTraceDataset(
        job.data_folder, split=split, max_seq_len=job.train.max_seq_len, tokenizer_folder=job.tokenizer_folder
    )


def kind_of_start(job: Job) -> str:
    """What the training starts from, as `TrainConfig.begun_from` names it."""
    if job.calibrated_start is not None:
        return TERNARY_START
    if not job.student.init_from:
        return RANDOM_START
    folder = starting_folder(job.student, job.teacher_folder)
    return TERNARY_START if is_ternary(folder) else CHECKPOINT_START


def as_it_began(
    job: Job, settings: TrainConfig, resumed: Resumed | None, schedule: TokenSchedule, tell: Callable[[str], None]
) -> TrainConfig:
    """`settings` with the ternary warm-up that the training began with, where the job leaves it out: weights that are
    ternary already must not go back because there are to be more steps. `tell` hears how a shorter training goes on.
    """
    if resumed is None or resumed.state.plan is None:
        return settings
    plan, state, usual = resumed.state.plan, resumed.state, settings.ternary_warmup_steps or 0
    if job.train.ternary_warmup_steps is None:
        begun = attrs.evolve(job.train, steps=plan["steps"]).begun_from(kind_of_start(job))
        kept = plan.get("ternary_warmup_steps", begun.ternary_warmup_steps)
        settings = attrs.evolve(settings, ternary_warmup_steps=kept)
    if resumed.grown_from is not None:
        flipped = state.bits <= 4 < job.student.activation_bits and plan["budget_tokens"] != schedule.budget
        tell(how_it_goes_on(state.step, resumed.grown_from, settings, usual, flipped=flipped))
    return settings


def what_to_know(job: Job, found: Targets, schedule: TokenSchedule) -> list[str]:
    """What the user should know of the traces, of the student's settings and of the schedule; empty: all is well."""
    train = job.train
    idle = [*without_effect(job.student), *train.without_effect()]
    return [*what_is_lacking(found, train.max_seq_len), *idle, *left_unfinished(schedule, train)]


def check_processes(job: Job, group: ProcessGroup) -> None:
    """Raises CoreError where the processes can't work together: too many for a batch, or without a folder to share."""
    batch = job.train.batch_size
    if group.size > batch:
        raise CoreError(f"{group.size} processes share batches of train.batch_size = {batch}", "raise train.batch_size")
    if group.size == 1:
        return
    folder = job.checkpoint_folder
    sign = group.everyones(uuid.uuid4().hex)[0]  # a new name: network file systems remember what was not there
    file = folder / f".shared_{sign}"
    if group.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        file.touch()
    group.wait_for_all()
    try:
        with group.failing_together():
            if not file.exists():
                raise CoreError(
                    f"{folder}: on {platform.node()} this is another folder than the first process's",
                    "put the run folder (store.root) on a disk that all machines share, under one path",
                )
    finally:
        if group.is_first:
            file.unlink()


def settings_of_start(job: Job) -> StudentConfig:
    """The student's settings, with the checkpoint that its calibration has made where there is one."""
    return job.student if job.calibrated_start is None else calibrated_student(job.student, job.calibrated_start)


def name_of_start(job: Job) -> str:
    """How the first weights come about, as `TrainingState.start` has it."""
    if job.calibrated_start is not None:
        return "calibrated"
    return "checkpoint" if job.student.init_from else "random"


def rows_to_read(job: Job, traces: KDTraceDataset) -> RowStart | None:
    """For one of many processes: the student without values, and where its own rows lie; None: it is made whole."""
    return start_by_rows(settings_of_start(job), job.teacher_folder, traces.vocab_size)


def new_student(job: Job, traces: KDTraceDataset) -> PreTrainedModel:
    """The student before its first step, whole."""
    return start_student(settings_of_start(job), job.teacher_folder, traces.vocab_size, seed=job.seed)


def before_the_first_step(job: Job, traces: KDTraceDataset) -> TrainingState:
    return TrainingState(
        step=0,
        batches=0,
        seen_tokens=0,
        bits=job.student.activation_bits,
        fingerprint=job.fingerprint,
        projection=traces.metadata.projection.get("id") if traces.metadata else None,
    )


def ends_that_are_learned(tokenizer_folder: Path, template: str | None, model: PreTrainedModel) -> list[int]:
    """The tokens that end an answer: the start's, the tokenizer's, and what the traces end turns with."""
    tokenizer = load_tokenizer(tokenizer_folder)
    if template is not None:
        tokenizer.chat_template = template
    return end_tokens(tokenizer_folder, tokenizer, configured_ends(model))


def weights_sha256(model: torch.nn.Module, group: ProcessGroup = ALONE) -> str:
    """Hex digest of the parameters' names, shapes and float32 values, sorted by name; a tied one counts once.

    Where parameters are sharded all processes must ask, and the first one gets it.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        entire = whole(parameter.detach())
        if group.is_first:
            digest.update(f"{name} {list(parameter.shape)}\n".encode())
            digest.update(entire.float().contiguous().cpu().numpy().data)
    return digest.hexdigest()


def open_learner(
    job: Job, model: PreTrainedModel, group: ProcessGroup, dtype: torch.dtype, start: RowStart | None
) -> Learner:
    """Freeze, compile and shard the model as the job says, and give it an optimizer.

    Where it is on the meta device, each process reads its rows from `start`; None: it has room for them.
    """
    if job.train.packing:  # a packed mask knows nothing of sliding windows
        llama_shaped(model, "train.packing", "leave it out")
    freeze_embeddings(model, job.student.freeze_embeddings)
    if job.train.gradient_checkpointing:
        checkpoint_activations(model)
    terms: Intermediate | None = None
    if job.intermediate is not None and job.intermediate_teacher is not None:
        terms = open_intermediate(
            job.intermediate, job.intermediate_teacher, job.tokenizer_folder, decoder(model), dtype, group.device
        )
    if job.train.compile:
        for index, layer in enumerate(decoder_layers(model)):
            if terms is None or index not in terms.student_layers:  # a hooked layer isn't compiled
                layer.compile()
    root = shard(model, list(decoder_layers(model)), group)
    if on_meta(model):
        with group.failing_together():
            fill(root, model, group.device, start, group.rows)
    return Learner(
        root=root,
        loss=job.loss,
        optimizer=make_optimizer(model, job.train),
        scaler=torch.amp.GradScaler(group.device.type, enabled=dtype is torch.float16),
        settings=job.train,
        group=group,
        intermediate=terms,
    )


@contextmanager
def settings_of(train: TrainConfig) -> Iterator[None]:
    """torch's own settings for this training; as they were afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS wants for it
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
