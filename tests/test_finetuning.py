"""One classifier of the stage: what its plan says, and what its trainer is given."""

import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from receiptbert.finetune_trainer import FinetuneTrainer
from receiptbert.finetuning import Finetuning, Run
from receiptbert.labelled import TrainingSet, load_labelled, training_set
from receiptbert.params_file import load_params
from tests.conftest import Cut
from tests.projects import set_params


def make_finetuning(project: Path) -> tuple[Finetuning, TrainingSet]:
    params = load_params(project / "params.yaml")
    source, device = project / "models/pretrained", torch.device("cpu")
    finetuning = Finetuning(params.finetune, source, 100, device, params.runtime)
    train = load_labelled(project / "data/tokenized", "train", finetuning.tokenizer)
    return finetuning, training_set(*train, params.finetune)


def test_the_plan_tells_processes_of_all_hosts_from_those_of_this_one(
    tiny_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiptbert.finetuning.num_processes", lambda: 4)
    monkeypatch.setattr("receiptbert.finetuning.num_processes_here", lambda: 2)
    finetuning, data = make_finetuning(tiny_project)
    plan = finetuning._plan(data)
    assert (plan.processes, plan.processes_here) == (4, 2)


def test_finetuning_records_no_passes_where_memory_lacks(
    tiny_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiptbert.finetuning.can_capture", lambda *_: True)
    finetuning, data = make_finetuning(tiny_project)
    recorded = finetuning._plan(data)
    plain = dataclasses.replace(recorded, cuda_graphs=False)
    for free, expected in ((recorded.total_memory + 1, True), (plain.total_memory + 1, False)):
        monkeypatch.setattr("receiptbert.finetuning.free_memory", lambda _, free=free: free)
        finetuning.require_memory(data)
        assert finetuning._cuda_graphs == expected


def test_the_trainer_has_the_engine_and_the_recorded_passes_that_were_chosen(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_params(project, {"runtime.amp_backend": "apex"})
    monkeypatch.setattr("receiptbert.finetuning.check_amp_backend", lambda *_: None)
    monkeypatch.setattr("receiptbert.finetuning.can_capture", lambda *_: True)
    given: dict[str, Any] = {}

    def make(*_: Any, **kwargs: Any) -> FinetuneTrainer:
        given.update(kwargs)
        raise Cut

    monkeypatch.setattr("receiptbert.finetuning.FinetuneTrainer", make)
    finetuning, data = make_finetuning(project)
    val = load_labelled(project / "data/tokenized", "val", finetuning.tokenizer)
    with pytest.raises(Cut):
        finetuning.train(data, val, 0, Run(cast(Any, None), ""))
    assert (given["amp_backend"], given["cuda_graphs"]) == ("apex", True)
