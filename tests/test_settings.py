"""Each stage heeds all its settings, and no other; one that spares memory changes no byte."""

import shutil
from pathlib import Path

import pytest
import yaml
from torch.utils.checkpoint import checkpoint

from receiptbert.plan import Plan
from tests.conftest import ROOT
from tests.projects import STAGES, contents, logged, run_here, set_params

DVC_YAML = yaml.safe_load((ROOT / "dvc.yaml").read_text())
# Steps enough for every setting to tell.
BASE = {
    "pretrain.batch_size": "10",
    "pretrain.epochs": "3",
    "pretrain.warmup": "0.3",
    "finetune.batch_size": "20",
    "finetune.epochs": "3",
    "finetune.warmup": "0.3",
}
OTHER = {
    "tokenizer.vocab_size": "500",
    "tokenizer.min_frequency": "4",
    "pretokenize.max_length_quantile": "0.5",
    "model.size": "medium",
    "model.hidden_size": "12",
    "model.num_hidden_layers": "2",
    "model.num_attention_heads": "4",
    "model.intermediate_size": "24",
    "model.act_func": "relu",
    "pretrain.seed": "1",
    "pretrain.max_steps": "2",
    "pretrain.epochs": "2",
    "pretrain.batch_size": "12",
    "pretrain.num_accum_steps": "2",
    "pretrain.lr": "1e-3",
    "pretrain.final_lr": "1e-4",
    "pretrain.warmup": "0.6",
    "pretrain.weight_decay": "0.9",
    "pretrain.max_grad_norm": "0.01",
    "pretrain.dropout": "0.5",
    "pretrain.mask_prob": "0.6",
    "pretrain.random_prob": "0.5",
    "pretrain.keep_unchanged_prob": "0.5",
    "pretrain.whole_words": "false",
    "pretrain.letters_only": "false",
    "pretrain.permute_prob": "0.1",
    "pretrain.sop_weight": "0.8",
    "pretrain.holdout": "3",
    "finetune.seed": "1",
    "finetune.init": "scratch",
    "finetune.epochs": "2",
    "finetune.min_steps": "20",
    "finetune.batch_size": "10",
    "finetune.lr": "1e-3",
    "finetune.final_lr": "1e-4",
    "finetune.layer_lr_decay": "0.9",
    "finetune.warmup": "0.6",
    "finetune.weight_decay": "0.9",
    "finetune.max_grad_norm": "0.01",
    "finetune.dropout": "0.5",
    "finetune.label_smoothing": "0.5",
    "finetune.teachers": "1",
}
# The archive is read by all tests here, the next is in test_corpus_warnings.py; a CPU may have fp32 alone.
ELSEWHERE = {"data.archive", "data.train_on_held_out_texts", "pretrain.precision", "finetune.precision"}
STAGE_OF = {
    "tokenizer": "train_tokenizer",
    "pretokenize": "pretokenize",
    "model": "pretrain",
    "pretrain": "pretrain",
    "finetune": "finetune",
}
MADE = {
    "train_tokenizer": "models/tokenizer/vocab.txt",
    "pretokenize": "data/tokenized/lengths.json",
    "pretrain": "models/pretrained/model.safetensors",
    "finetune": "models/finetuned/model.safetensors",
}


def run_to_the_end(stage: str, folder: Path) -> None:
    """The weights of the last epoch stay, whose score so short a finetuning need not raise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "receiptbert.finetuning.make_scorer",
            lambda *_: lambda trainer: ("f1", float(len(trainer.epochs))),
        )
        run_here(STAGES[stage], folder)


@pytest.fixture(scope="module")
def base(tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project with the settings ``BASE``."""
    folder = tmp_path_factory.mktemp("base") / "project"
    shutil.copytree(tiny_project, folder)
    set_params(folder, BASE)
    for stage in ("pretrain", "finetune"):
        run_to_the_end(stage, folder)
    return folder


@pytest.mark.parametrize(("key", "value"), OTHER.items())
def test_every_setting_tells(base: Path, tmp_path: Path, key: str, value: str) -> None:
    stage = STAGE_OF[key.split(".")[0]]
    folder = tmp_path / "project"
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("runs"))
    set_params(folder, {key: value})
    run_to_the_end(stage, folder)
    assert (folder / MADE[stage]).read_bytes() != (base / MADE[stage]).read_bytes()


def test_every_setting_has_a_test() -> None:
    """A new parameter needs a row above."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    keys = {f"{section}.{name}" for section, values in params.items() for name in values}
    assert {key for key in keys if not key.startswith("runtime.")} == OTHER.keys() | ELSEWHERE


def test_the_rate_falls_within_the_steps_that_are_made(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Plan] = []
    monkeypatch.setattr("receiptbert.pretraining.announce", lambda plan, _: plans.append(plan))
    set_params(project, BASE | {"pretrain.max_steps": "8", "pretrain.warmup": "0.25", "pretrain.lr": "6e-4"})
    set_params(project, {"pretrain.final_lr": "0.0"})
    run_here(STAGES["pretrain"], project)
    rates = logged(max((project / "runs/pretrain").iterdir()))["lr"]
    assert list(rates.values()) == pytest.approx([0, 3e-4, 6e-4, 5e-4, 4e-4, 3e-4, 2e-4, 1e-4])
    (plan,) = plans
    assert (plan.steps, plan.texts) == (8, 10)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_nothing_that_dvc_yaml_does_not_name(
    tiny_project: Path, tmp_path: Path, stage: str
) -> None:
    """DVC would take its outputs for up to date when that changes."""
    spec = DVC_YAML["stages"][stage]
    shutil.copy(tiny_project / "params.yaml", tmp_path)
    for dep in spec["deps"]:
        source = tiny_project / dep.replace("${data.archive}", "data/tiny.zip")
        if dep.startswith("src/"):
            continue
        copy = shutil.copytree if source.is_dir() else shutil.copy
        (tmp_path / source.relative_to(tiny_project)).parent.mkdir(parents=True, exist_ok=True)
        copy(source, tmp_path / source.relative_to(tiny_project))
    named = tuple(spec.get("params", []))
    set_params(tmp_path, {key: value for key, value in OTHER.items() if not key.startswith(named)})
    before = set(tmp_path.rglob("*"))
    run_here(STAGES[stage], tmp_path)
    made = [
        path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path not in before and path.is_file()
    ]
    made = [path for path in made if path.parts[0] in ("data", "models", "metrics")]
    assert made
    for path in made:
        assert (tmp_path / path).read_bytes() == (tiny_project / path).read_bytes(), path


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
