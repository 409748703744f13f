"""What cannot fit into the memory is refused before it trains, with what would fit."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from receiptbert.errors import UserError
from receiptbert.plan import Plan, require_memory
from tests.projects import STAGES, contents, refusal, run_here
from tests.small_plans import FINETUNING, PLAN

SWITCH = "runtime.activation_checkpointing=true"


@pytest.mark.parametrize(
    ("plan", "fits", "advice"),
    [
        (PLAN, {"texts": 32}, f"pretrain.batch_size=32 with pretrain.num_accum_steps=6, or {SWITCH}"),
        (PLAN, {"texts": 16}, "pretrain.batch_size=16 with pretrain.num_accum_steps=12"),
        (
            PLAN,
            {"activation_checkpointing": True},
            f"pretrain.batch_size=16 with pretrain.num_accum_steps=12, or {SWITCH}",
        ),
        (
            PLAN,
            {"texts": 1, "activation_checkpointing": True},
            f"{SWITCH} and pretrain.batch_size=1 with pretrain.num_accum_steps=192",
        ),
        (PLAN, {"texts": 0, "longest": 0}, "a smaller model.size, or take a machine with more memory"),
        (replace(PLAN, precision="bf16"), {"precision": "fp32"}, "pretrain.precision=fp32"),
        (FINETUNING, {"texts": 8}, "finetune.batch_size=4"),
    ],
)
def test_what_cannot_fit_is_refused_with_what_would(plan: Plan, fits: dict[str, Any], advice: str) -> None:
    free = int(replace(plan, **fits).total_memory) + 1
    settings: tuple[str, int, int | None] = ("pretrain", 64, 3)
    if plan is FINETUNING:
        settings = ("finetune", 32, None)  # twice as many texts in a batch as the setting says
    with pytest.raises(UserError) as refused:
        require_memory(plan, free, *settings)
    expected = r"the training would take about [\d.]+ GiB of memory, but only [\d.]+ GiB are free; set (.*)"
    match = re.fullmatch(expected, str(refused.value))
    assert match is not None
    assert match[1] == advice
    require_memory(replace(plan, **fits), free, *settings)
    require_memory(plan, None, *settings)


def test_passes_are_recorded_only_where_memory_suffices(capsys: pytest.CaptureFixture[str]) -> None:
    plain = replace(PLAN, on_cpu=False)
    recorded = replace(plain, cuda_graphs=True)
    free = int(plain.total_memory) + 1
    assert not require_memory(plain, free, "pretrain", 64, 1)
    assert require_memory(recorded, int(recorded.total_memory) + 1, "pretrain", 64, 1)
    assert capsys.readouterr().err == ""
    assert not require_memory(recorded, free, "pretrain", 64, 1)
    assert "plan: no memory to record passes as CUDA graphs; without that " in capsys.readouterr().err
    # What is refused is what would be trained.
    with pytest.raises(UserError, match=r"set pretrain\.batch_size=32 with pretrain\.num_accum_steps=2"):
        require_memory(recorded, int(replace(plain, texts=32).total_memory) + 1, "pretrain", 64, 1)


def test_a_smaller_batch_makes_steps_of_as_many_texts() -> None:
    free = int(replace(PLAN, texts=2).total_memory) + 1
    with pytest.raises(UserError, match=r"pretrain.batch_size=2 with pretrain.num_accum_steps=24"):
        require_memory(replace(PLAN, texts=48), free, "pretrain", 48, 1)
    with pytest.raises(UserError, match=r"set finetune.batch_size=15,"):  # nothing accumulates: any will do
        require_memory(replace(PLAN, texts=31), int(replace(PLAN, texts=16).total_memory) + 1, "finetune", 31)
    with pytest.raises(UserError, match=r"set a smaller model.size"):  # where texts // 32 would be none
        require_memory(
            replace(PLAN, texts=20), int(replace(PLAN, texts=0, longest=0).total_memory) + 1, "finetune", 32
        )
    long = replace(PLAN, longest=1000)  # as many tokens as 62 usual texts, in however small a batch
    with pytest.raises(UserError, match=r"set runtime.activation_checkpointing=true$"):
        require_memory(
            replace(long, texts=128), int(replace(long, texts=32).total_memory) - 1, "pretrain", 128, 1
        )
    with pytest.raises(UserError, match=r"set a smaller house, or take"):
        require_memory(PLAN, 1, "finetune", 32, smaller_model="a smaller house")
    longest = replace(PLAN, longest=100_000, texts=32)
    free = int(replace(longest, longest=math.ceil(PLAN.length)).total_memory) + 1
    with pytest.raises(
        UserError, match=r"set a lower pretokenize.max_length_quantile \(the longest text has 100"
    ):
        require_memory(longest, free, "pretrain", 32, 1)
    taught = replace(FINETUNING, soft_targets=10**9)  # which no smaller batch or model makes fewer
    with pytest.raises(UserError, match=r"set finetune.teachers=0$"):
        require_memory(taught, int(FINETUNING.total_memory) + 1, "finetune", 32)


@pytest.mark.parametrize(
    ("stage", "where", "batches"),
    [
        (
            "pretrain",
            "receiptbert.pretraining",
            r"pretrain\.batch_size=\d+ with pretrain\.num_accum_steps=\d+",
        ),
        ("finetune", "receiptbert.finetuning", r"finetune\.batch_size=\d+"),
    ],
)
def test_a_stage_refuses_before_it_trains(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    where: str,
    batches: str,
) -> None:
    before = contents(project)
    advice = {1000: "a smaller model.size, or take a machine with more memory", 1_000_000: batches}
    for free, expected in advice.items():
        monkeypatch.setattr(f"{where}.free_memory", lambda _, free=free: free)
        assert re.search(rf"but only 0\.00 GiB are free; set {expected}", refusal(STAGES[stage], project))
    assert contents(project) == before
    monkeypatch.setattr(f"{where}.free_memory", lambda _: 2**30)
    run_here(STAGES[stage], project)
    assert "plan: about 0.0" in capsys.readouterr().err
