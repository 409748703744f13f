"""What is said before a training is true of it, and what cannot fit is refused with what would."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import memory
from receiptbert import BertFinetuneModel, BertModel
from receiptbert.devices import free_memory
from receiptbert.encoder import BertShape
from receiptbert.errors import UserError
from receiptbert.plan import Plan, announce, parameters, require_memory
from receiptbert.sizes import SIZES
from tests.conftest import ROOT, STAGES, contents, refusal, run_here, set_params

B, S, C, MASK_PROB = 64, 16, 7, 0.3
SHAPE = BertShape(
    vocab_size=500,
    max_seqlen=S,
    hidden_size=128,
    num_hidden_layers=4,
    intermediate_size=384,  # not 4d, so that nothing is mixed up
    num_attention_heads=2,
    act_func="gelu",
    eps=1e-3,
)
PLAN = Plan(
    shape=SHAPE,
    num_classes=None,
    trained_tokens=SHAPE.vocab_size,
    soft_targets=0,
    processes=1,
    texts=B,
    length=float(S),
    longest=S,
    mask_prob=MASK_PROB,
    dropout=0.0,
    precision="fp32",
    on_cpu=True,
    recorded=False,
    activation_checkpointing=False,
    steps=1_000,
)
FINETUNING = replace(PLAN, num_classes=C, mask_prob=0.0)
PLANS = [
    pytest.param(PLAN, id="pretrain"),
    pytest.param(replace(PLAN, dropout=0.1), id="pretrain with dropout"),
    pytest.param(replace(PLAN, activation_checkpointing=True), id="pretrain with checkpointing"),
    pytest.param(replace(PLAN, precision="bf16"), id="pretrain in bf16"),
    pytest.param(replace(FINETUNING, precision="bf16", dropout=0.1), id="finetune in bf16 with dropout"),
    pytest.param(FINETUNING, id="finetune"),
    pytest.param(replace(FINETUNING, dropout=0.1), id="finetune with dropout"),
]


def make_model(plan: Plan) -> BertModel | BertFinetuneModel:
    dropout = {
        "input_dropout_prob": plan.dropout,
        "hidden_dropout_prob": plan.dropout,
        "attention_probs_dropout_prob": plan.dropout,
    }
    if plan.num_classes is None:
        model: Any = BertModel(**plan.shape.kwargs(), **dropout)
    else:
        model = BertFinetuneModel(**plan.shape.kwargs(), num_classes=plan.num_classes, **dropout)
    model.checkpoint_activations(plan.activation_checkpointing)
    return model.train()  # type: ignore[no-any-return]


def loss_of(model: BertModel | BertFinetuneModel, plan: Plan) -> Tensor:
    """Of a batch as the plan has it."""
    ids = torch.randint(5, plan.shape.vocab_size, (B, S))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, -1] = False  # so that there is one
    with torch.autocast("cpu", torch.bfloat16, enabled=plan.precision == "bf16"):
        if isinstance(model, BertFinetuneModel):
            return nn.functional.cross_entropy(model(ids, mask), torch.zeros(B, dtype=torch.long))
        is_target = torch.zeros(B, S, dtype=torch.bool)
        is_target.view(-1)[: round(B * (S - 2) * MASK_PROB)] = True
        loss: Tensor = model(ids, mask, ids.where(is_target, -100), mask[:, 0], torch.zeros_like(ids))[0]
        return loss


@pytest.mark.parametrize("plan", [PLAN, FINETUNING])
def test_the_parts_are_all_parameters(plan: Plan) -> None:
    model = make_model(plan)
    real = sum(parameter.numel() for parameter in model.parameters())
    assert sum(parameters(SHAPE, plan.num_classes).values()) == plan.num_parameters == real


@pytest.mark.parametrize("plan", PLANS)
def test_operations_are_those_of_a_step(plan: Plan) -> None:
    model = make_model(plan)
    with FlopCounterMode(display=False) as counter:
        loss_of(model, plan).backward()  # type: ignore[no-untyped-call]
    expected = plan.operations_per_token * B * S
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


def bytes_kept(plan: Plan) -> int:
    """What autograd really keeps from the forward pass of a batch."""
    model = make_model(plan)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_of(model, plan)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("plan", PLANS)
def test_activations_are_those_that_a_step_keeps(plan: Plan) -> None:
    """Some more are told, for the gradients on their way."""
    real = bytes_kept(plan)
    if plan.activation_checkpointing:  # one layer at a time is computed once more
        real += bytes_kept(replace(plan, activation_checkpointing=False)) // SHAPE.num_hidden_layers
    assert real < plan.memory["activations"] < 1.6 * real


def test_memory_by_hand() -> None:
    weights = 4 * PLAN.num_parameters
    shared = 4 * SHAPE.vocab_size * SHAPE.hidden_size
    on_gpu = replace(PLAN, on_cpu=False)
    assert on_gpu.memory["weights, gradients and moments"] == 4 * weights + shared
    of_attention = 4 * B * S * SHAPE.num_hidden_layers * SHAPE.num_attention_heads * S
    gaps = PLAN.memory["activations"]
    assert gaps == on_gpu.memory["activations"] + of_attention
    checkpoint = 6 * weights  # twice while it is written
    in_bf16 = replace(PLAN, precision="bf16")
    on_gpu_in_bf16 = replace(in_bf16, on_cpu=False)
    assert in_bf16.memory["compiled products"] == 0.8 * 2**30
    assert "compiled products" not in PLAN.memory | on_gpu_in_bf16.memory
    copies = in_bf16.memory["weights, gradients and moments"]
    assert copies == on_gpu.memory["weights, gradients and moments"] + weights / 2
    logits = B * S * MASK_PROB * (1 - 2 / S) * SHAPE.vocab_size
    in_fp16 = replace(on_gpu_in_bf16, precision="fp16")
    assert in_fp16.memory["activations"] == on_gpu_in_bf16.memory["activations"] + 4 * logits
    assert PLAN.total_memory == pytest.approx(on_gpu.total_memory + of_attention + gaps + checkpoint)
    recorded = weights + 4.4 * on_gpu.memory["activations"] + 0.4 * 2**30
    assert replace(on_gpu, recorded=True).total_memory == pytest.approx(on_gpu.total_memory + recorded)
    assert replace(PLAN, texts=2 * B).memory["activations"] == 2 * PLAN.memory["activations"]
    finetuning = 5 * 4 * FINETUNING.num_parameters + shared
    assert FINETUNING.memory["weights, gradients and moments"] == finetuning
    few = replace(FINETUNING, trained_tokens=100, soft_targets=1000)
    spared = 5 * 4 * 400 * SHAPE.hidden_size
    assert few.memory["weights, gradients and moments"] == finetuning - spared
    assert few.memory["targets"] == 2 * 4 * 1000


def shape_of(hidden_size: int, layers: int, entries: int) -> BertShape:
    """As the published sizes are made, for texts as long as the sample's."""
    return BertShape(
        vocab_size=entries,
        max_seqlen=23,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        intermediate_size=4 * hidden_size,
        num_attention_heads=hidden_size // 64,
        act_func="gelu",
        eps=1e-3,
    )


# Below and above what was measured: in bf16 shapes of batches and their number count, which the plan ignores.
BOUNDS = {"fp32": (0.85, 1.20), "bf16": (0.80, 1.30)}


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("row", memory.ROWS, ids=lambda row: row.name)
def test_memory_is_about_what_was_measured(row: memory.Row, precision: str) -> None:
    """On a CPU, with texts as long as the sample's: docs/training.md."""
    size = SIZES[row.size]
    plan = replace(
        PLAN,
        shape=shape_of(size.hidden_size, size.num_hidden_layers, row.entries),
        trained_tokens=row.entries,
        texts=row.batch_size,
        length=9.52,
        longest=23,
        dropout=row.dropout,
        precision=precision,
        activation_checkpointing=row.activation_checkpointing,
    )
    results = json.loads((ROOT / f"benchmarks/results/memory_{precision}.json").read_text())
    assert results["precision"] == precision
    found = results["rows"][row.name]
    planned = plan.total_memory / 2**30
    assert planned == pytest.approx(found["plan_gib"], abs=0.003)  # else benchmarks/memory.py is to run anew
    least, most = BOUNDS[precision]
    assert least < planned / found["measured_gib"] < most


@pytest.mark.parametrize(("texts", "measured"), [(256, 1.56), (1_024, 4.34)])
def test_memory_of_a_gpu_is_about_what_was_measured(texts: int, measured: float) -> None:
    """In GiB, on an H200 in bf16: docs/LOG.md, Memory."""
    # Since then the logits leave out 10 bytes each, in passes that are recorded and in those that are not.
    measured -= 2 * 10 * 0.3 * (1 - 2 / 9.0) * 9.0 * texts * 30_000 / 2**30
    shape = shape_of(256, 4, 30_000)
    plan = replace(
        PLAN, shape=shape, trained_tokens=30_000, texts=texts, length=9.0, longest=23, precision="bf16"
    )
    on_gpu = replace(plan, on_cpu=False, recorded=True)
    assert on_gpu.total_memory / 2**30 == pytest.approx(measured, rel=0.05)


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
        (PLAN, {"texts": 0}, "a smaller model.size, or take a machine with more memory"),
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


def test_a_smaller_batch_makes_steps_of_as_many_texts() -> None:
    free = int(replace(PLAN, texts=2).total_memory) + 1
    with pytest.raises(UserError, match=r"pretrain.batch_size=2 with pretrain.num_accum_steps=24"):
        require_memory(replace(PLAN, texts=48), free, "pretrain", 48, 1)
    with pytest.raises(UserError, match=r"set finetune.batch_size=15,"):  # nothing accumulates: any will do
        require_memory(replace(PLAN, texts=31), int(replace(PLAN, texts=16).total_memory) + 1, "finetune", 31)
    with pytest.raises(UserError, match=r"set a smaller model.size"):  # where texts // 32 would be none
        require_memory(replace(PLAN, texts=20), int(replace(PLAN, texts=0).total_memory) + 1, "finetune", 32)
    with pytest.raises(UserError, match=r"set a smaller house, or take"):
        require_memory(PLAN, 1, "finetune", 32, smaller_model="a smaller house")
    taught = replace(FINETUNING, soft_targets=10**9)  # which no smaller batch or model makes fewer
    with pytest.raises(UserError, match=r"set finetune.teachers=0$"):
        require_memory(taught, int(FINETUNING.total_memory) + 1, "finetune", 32)


def test_the_plan_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    announce(replace(PLAN, on_cpu=False), 3 * 2**30)
    announce(FINETUNING, None)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "plan: 762.0 thousand parameters: embeddings 66.6 thousand, attention 265.2 thousand, "
        "feed-forward 396.3 thousand, heads 33.9 thousand"
    )
    assert lines[1].startswith("plan: 1,000 steps, batches of 64 texts of 16.0 tokens, ")
    assert lines[1].endswith(" million operations for each token, forward and backward")
    assert re.fullmatch(
        r"plan: about 0\.04 GiB of memory of 3\.00 GiB free: "
        r"weights, gradients and moments 0\.01 GiB, activations 0\.03 GiB",
        lines[2],
    )
    assert "free" not in lines[-1]
    assert re.search(r", gaps between blocks [\d.]+ GiB, a checkpoint while it is written", lines[-1])


@pytest.mark.parametrize(
    ("stage", "where"), [("pretrain", "receiptbert.pretraining"), ("finetune", "receiptbert.finetuning")]
)
def test_a_stage_refuses_before_it_trains(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    where: str,
) -> None:
    before = contents(project)
    monkeypatch.setattr(f"{where}.free_memory", lambda _: 1000)
    line = refusal(STAGES[stage], project)
    assert line.endswith("set a smaller model.size, or take a machine with more memory")
    assert contents(project) == before
    monkeypatch.setattr(f"{where}.free_memory", lambda _: 2**30)
    run_here(STAGES[stage], project)
    assert "plan: about 0.0" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_stage_checkpoints_activations_and_makes_the_same_bytes(
    project: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    before = contents(project)
    params = (project / "params.yaml").read_text()
    set_params(project, {"runtime.activation_checkpointing": "true"})
    calls = []
    monkeypatch.setattr(
        "receiptbert.encoder.checkpoint",
        lambda *arguments, **options: (calls.append(stage), checkpoint(*arguments, **options))[1],
    )
    run_here(STAGES[stage], project)
    assert calls
    (project / "params.yaml").write_text(params)
    assert contents(project) == before


def test_free_memory_of_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr("receiptbert.devices.MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr("receiptbert.devices.CGROUP", tmp_path)
    assert free_memory(cpu) is None  # not Linux
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  5000 kB\n")
    assert free_memory(cpu) == 5000 * 1024
    for name, text in {"max": "3000000", "current": "2500000", "stat": "anon 500000\nfile 2000000\n"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert free_memory(cpu) == 2_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(cpu) == 5000 * 1024
