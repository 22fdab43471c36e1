# One-line aliases of `uv run bitnet ...`. Settings are overridden by the names below, on the command line only:
#   make train TOTAL_STEPS=200 KD_TAU=1.1
MANIFEST ?= manifests/quickstart.toml

# name:manifest key (docs/make.md shows the same table)
OVERRIDES := \
  SEED:run.seed \
  EVAL_PROMPTS:baseline.max_prompts \
  KD_TOP_K:collect.top_k KD_TEMPERATURE:collect.temperature KD_TOP_P:collect.top_p \
  KD_MAX_TOKENS_PER_PROMPT:collect.max_new_tokens KD_MAX_PROMPTS:collect.max_prompts \
  KD_TAU:loss.tau CE_WEIGHT:loss.ce_weight FORMAT_WEIGHT:loss.format_weight \
  TOTAL_STEPS:train.steps BUDGET_TOKENS:train.budget_tokens FLIP_FRACTION:train.flip_fraction \
  LR:train.learning_rate TRAIN_BATCH_SIZE:train.batch_size GRAD_ACCUM:train.accumulation \
  MAX_SEQ_LEN:train.max_seq_len WARMUP_STEPS:train.warmup_steps \
  EVAL_MAX_PROMPTS:evaluate.max_prompts EVAL_MAX_NEW_TOKENS:evaluate.max_new_tokens

override_of = $(if $(filter command,$(origin $(1))),--set $(2)=$($(1)))
SETTINGS = $(foreach pair,$(OVERRIDES),$(call override_of,$(word 1,$(subst :, ,$(pair))),$(word 2,$(subst :, ,$(pair)))))
RUN = $(strip uv run bitnet run $(MANIFEST) $(SETTINGS))

.PHONY: install ensure_dirs teacher collect train eval dryrun all test clean
install: ; uv sync
ensure_dirs: ; $(RUN) --stages storage
teacher: ; $(RUN) --stages baseline
collect: ; $(RUN) --stages collect,project
train: ; $(RUN) --stages calibrate,train
eval: ; $(RUN) --stages evaluate,report
dryrun: MANIFEST = manifests/7b-dry-run.toml
dryrun: ; $(RUN) --stages dry_run
all: ; $(RUN)
test: ; uv run --group dev pytest
clean: ; rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache && find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
