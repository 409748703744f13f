"""Both engines of mixed precision. Apex needs a GPU: a stand-in takes its place, which has its calls."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from receiptbert.amp import check_amp_backend
from receiptbert.errors import UserError
from tests.conftest import Make, overflow
from tests.projects import STAGES, metric, run_here

FP16_ENGINES = ["torch", "apex"]


def test_apex_is_called_as_the_assignment_says(
    apex: ModuleType, pretrainer: Make, pretrain_loader: Make
) -> None:
    def train(**kwargs: Any) -> list[tuple[float, float]]:
        trainer = pretrainer(num_accum_steps=2, max_grad_norm=1.0, **kwargs)
        torch.manual_seed(1)
        trainer.train(pretrain_loader(), 2)
        return [(record["MLM"], record["grad_norm"]) for record in trainer.history]

    expected = train()
    assert apex.calls == []
    assert train(precision="fp16", amp_backend="apex") == expected
    begun = ["half scaled_dot_product_attention", "half einsum", "initialize O1"]
    assert apex.calls == begun + ["scale_loss"] * 2 * len(pretrain_loader())
    # The classifiers of finetune are trained one after another in one process.
    assert train(precision="fp16", amp_backend="apex") == expected


@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
def test_apex_casts_in_the_forward_passes_of_the_training_alone(
    apex: ModuleType, finetune_model: Make, finetuner: Make, recomputed: bool
) -> None:
    model = finetune_model()
    model.backbone.activation_checkpointing = recomputed  # in the backward pass
    trainer, loaders = finetuner(model, precision="fp16", amp_backend="apex")
    assert not apex.casting
    seen = set()
    model.backbone.levels()[-1].register_forward_pre_hook(
        lambda layer, _: seen.add(("train" if layer.training else "eval", apex.casting))
    )
    trainer.train(loaders, 2)
    assert seen == {("train", True), ("eval", False)}
    assert not apex.casting


@pytest.mark.parametrize("backend", FP16_ENGINES)
def test_a_step_that_overflows_is_skipped_and_counted_and_does_not_move_the_schedule(
    apex: ModuleType,  # noqa: ARG001
    pretrainer: Make,
    pretrain_loader: Make,
    capsys: pytest.CaptureFixture[str],
    backend: str,
) -> None:
    trainer = pretrainer(precision="fp16", amp_backend=backend, max_grad_norm=1.0)
    loader = pretrain_loader()
    trainer.train(loader, 1, max_steps=3)
    model = trainer._model
    before = [parameter.clone() for parameter in model.parameters()]
    overflow(trainer)
    trainer.train(loader, 1, max_steps=4)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert [record["step"] for record in trainer.history] == [1, 2, 3, 4]
    trainer.train(loader, 1, max_steps=6)
    assert [record["skipped"] for record in trainer.history] == [0, 0, 0, 1, 0, 0]
    assert trainer.skipped_steps == {"skipped_steps": 1}
    undisturbed = pretrainer()
    undisturbed.train(loader, 1, max_steps=5)
    rates = [record["lr"] for record in undisturbed.history]
    assert [record["lr"] for record in trainer.history] == [*rates[:4], *rates[3:]]
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    said = "step 4 is skipped: its gradients overflow fp16; the scale is 32768 from now on"
    assert capsys.readouterr().err.count(said) == 1


def test_a_step_at_which_the_scale_rises_is_taken(pretrainer: Make, pretrain_loader: Make) -> None:
    trainer, usual = pretrainer(precision="fp16"), pretrainer()
    trainer._amp._scaler.set_growth_interval(2)
    for each in (trainer, usual):
        each.train(pretrain_loader(), 1, max_steps=4)
    assert trainer._amp.scale == 2.0**18
    assert trainer.skipped_steps == {"skipped_steps": 0}
    assert [record["lr"] for record in trainer.history] == [record["lr"] for record in usual.history]


def test_a_resumed_scaler_has_the_scale_and_the_steps_since_it_changed(
    pretrainer: Make, pretrain_loader: Make
) -> None:
    one, other = (pretrainer(precision="fp16") for _ in range(2))
    one.train(pretrain_loader(), 1, max_steps=3)
    other._amp.load_state_dict(one._amp.state_dict())
    assert other._amp.state_dict() == {"scale": 2.0**16, "good_steps": 3}


@pytest.mark.parametrize("backend", FP16_ENGINES)
def test_gradients_that_overflow_at_any_scale_end_the_training(
    apex: ModuleType,  # noqa: ARG001
    pretrainer: Make,
    pretrain_loader: Make,
    backend: str,
) -> None:
    trainer = pretrainer(precision="fp16", amp_backend=backend)
    overflow(trainer, times=17)
    with pytest.raises(
        UserError, match=r"^the gradients of step 17 overflow fp16 at any scale; set precision"
    ):
        trainer.train(pretrain_loader(), 9)


def test_metrics_of_fp16_name_the_backend_and_count_the_skipped_steps(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "receiptbert.pretraining",
        "receiptbert.finetuning",
    ):  # a CPU's fp16 is too slow for more than a test
        monkeypatch.setattr(f"{name}.choose_precision", lambda *_: "fp16")
    for stage in ("pretrain", "finetune"):
        before = metric(project, stage)
        run_here(STAGES[stage], project)
        after = metric(project, stage)
        assert after.keys() - before.keys() == {"skipped_steps", "amp_backend"}
        assert (after["skipped_steps"], after["amp_backend"]) == (0, "torch")


# --- What there may be in the place of NVIDIA's apex ---

BUILD = "build NVIDIA's at a tag up to 25.04, or set torch"
PACKAGES: dict[str, tuple[dict[str, str], str]] = {
    "none": ({}, r"apex is not installed"),
    "another package": ({"apex/__init__.py": "raise SystemExit"}, r"the apex in .* is not NVIDIA's, .*"),
    "another module": ({"apex.py": "raise SystemExit"}, r"the apex in .*apex\.py is not NVIDIA's, .*"),
    "too new": (
        {"apex/__init__.py": "", "apex/normalization/__init__.py": ""},
        r"NVIDIA's apex in .* is too new: amp has left it",
    ),
    "too old": (
        {"apex/__init__.py": "", "apex/amp.py": "import torch._six"},
        r"the apex in .* cannot be imported \(No module named 'torch\._six'\)",
    ),
}


@pytest.mark.parametrize(("files", "expected"), PACKAGES.values(), ids=PACKAGES)
def test_an_environment_without_apex_amp_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match=rf"^amp_backend = apex, but {expected}; {BUILD}$"):
        check_amp_backend("apex", "fp16", torch.device("cuda"))
    sys.modules.pop("apex", None)
    check_amp_backend("torch", "fp16", torch.device("cuda"))


@pytest.mark.parametrize(
    ("name", "precision", "device", "expected"),
    [
        ("amp", "fp16", "cuda", " is neither torch nor apex"),
        ("apex", "fp16", "cpu", ", which needs a CUDA GPU, but the device is cpu; set torch"),
        ("apex", "auto", "cuda", ", which supports only fp16, but precision is auto; set torch, or fp16"),
        ("apex", "bf16", "cuda", ", which supports only fp16, but precision is bf16; set torch, or fp16"),
    ],
)
def test_what_apex_cannot_do_is_refused(name: str, precision: str, device: str, expected: str) -> None:
    with pytest.raises(UserError, match=f"^amp_backend = {name}{expected}$"):
        check_amp_backend(name, precision, torch.device(device))
