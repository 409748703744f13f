"""What the stage makes of its parameters and texts: batches, masks, steps, memory, figures."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest
import torch

from receiptbert import Collator, Trainer, WordpieceTokenizer
from receiptbert.corpus_facts import load_longest
from receiptbert.errors import UserError
from receiptbert.params_file import load_params
from receiptbert.pretraining import Pretraining, min_text_length
from receiptbert.token_store import TokenStore
from tests.projects import STAGES, logged, metric, run_here, set_params


@pytest.mark.parametrize(("mask_prob", "length"), [(0.15, 5), (0.5, 1), (0.25, 3), (0.01, 69)])
def test_min_text_length(mask_prob: float, length: int) -> None:
    assert min_text_length(mask_prob) == length


def test_short_texts_are_left_out_and_counted(project: Path) -> None:
    set_params(project, {"pretrain.mask_prob": "0.15"})
    run_here(STAGES["pretrain"], project)
    lengths = TokenStore.load(project / "data/tokenized/unsupervised.safetensors").lengths
    told = metric(project, "pretrain")
    assert (told["min_length"], told["texts_below_min_length"]) == (5, (lengths < 5).sum())
    assert (lengths < 5).any()


def make_pretraining(project: Path) -> Pretraining:
    tokenizer = WordpieceTokenizer.from_pretrained(project / "models/tokenizer")
    return Pretraining(
        load_params(project / "params.yaml"),
        TokenStore.load(project / "data/tokenized/unsupervised.safetensors", tokenizer),
        tokenizer,
        load_longest(project / "data/tokenized/lengths.json"),
        torch.device("cpu"),
    )


def test_pretraining_is_scored_on_the_texts_held_out(tiny_project: Path) -> None:
    pretraining, seeds = make_pretraining(tiny_project), []

    def evaluate(loader: Any) -> dict[str, float]:
        assert loader is pretraining._held_out_loader
        seeds.append(torch.initial_seed())
        return {"mlm_loss": 3.0}

    for before in (1, 2):  # the same masks whatever came before
        torch.manual_seed(before)
        assert pretraining.evaluate(cast(Any, SimpleNamespace(evaluate=evaluate))) == {"mlm_loss": 3.0}
    assert seeds == 2 * [load_params(tiny_project / "params.yaml").pretrain.seed]


def test_the_plan_counts_steps_of_accumulated_batches(project: Path) -> None:
    set_params(project, {"pretrain.batch_size": "40", "pretrain.epochs": "3", "pretrain.max_steps": "9999"})
    batches = make_pretraining(project).steps // 3
    set_params(project, {"pretrain.num_accum_steps": str(batches - 1)})
    assert make_pretraining(project).steps == 3 * 2  # the last step of an epoch has one batch


def test_each_setting_of_masking_reaches_the_collator(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of them have equal values as shipped, so that a swap would change nothing."""
    settings = {"mask_prob": 0.4, "random_prob": 0.2, "keep_unchanged_prob": 0.3}
    kinds = {"whole_words": True, "letters_only": False}
    set_params(project, {f"pretrain.{key}": str(value) for key, value in settings.items()})
    set_params(project, {f"pretrain.{key}": str(value).lower() for key, value in kinds.items()})
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "receiptbert.pretraining.Collator",
        lambda tokenizer, **kwargs: (given.append(kwargs), Collator(tokenizer, **kwargs))[1],
    )
    make_pretraining(project)
    assert given == [settings | kinds]


def test_passes_are_not_recorded_where_memory_lacks(
    tiny_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiptbert.pretraining.can_capture", lambda *_: True)
    monkeypatch.setattr(Trainer, "_make_graphs", lambda _: "graphs")
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: None)
    pretraining = make_pretraining(tiny_project)
    recorded = pretraining.plan.total_memory
    plain = dataclasses.replace(pretraining.plan, cuda_graphs=False).total_memory
    for free, expected in ((recorded + 1, "graphs"), ((recorded + plain) / 2, None)):
        monkeypatch.setattr("receiptbert.pretraining.free_memory", lambda _, free=free: free)
        pretraining.require_memory()
        _, trainer = pretraining.train(cast(Any, None), cast(Any, None))
        assert trainer._graphs == expected


def test_apex_accumulates_batches_in_a_single_process_alone(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several, it would keep the sums of all batches but the last from being averaged."""
    monkeypatch.setattr("receiptbert.pretraining.check_amp_backend", lambda *_: None)
    set_params(project, {"runtime.amp_backend": "apex", "pretrain.num_accum_steps": "2"})
    make_pretraining(project)
    monkeypatch.setattr("receiptbert.pretraining.num_processes", lambda: 2)
    with pytest.raises(
        UserError, match=r"apex, which cannot accumulate .*; set torch, or pretrain\.num_accum_steps to 1$"
    ):
        make_pretraining(project)
    set_params(project, {"pretrain.num_accum_steps": "1"})
    make_pretraining(project)


def test_texts_held_out_are_never_trained_on(tiny_project: Path) -> None:
    pretraining = make_pretraining(tiny_project)

    def texts_of(loader: Any) -> set[tuple[int, ...]]:
        texts = loader.dataset._texts
        return {tuple(texts.texts(torch.tensor([i]), None)[0].tolist()) for i in range(len(loader.dataset))}

    held_out = texts_of(pretraining._held_out_loader)
    assert held_out
    assert not held_out & texts_of(pretraining._loader)


def test_batches_of_pretraining_are_those_of_its_seed(project: Path) -> None:
    def batches(seed: int) -> list[list[int]]:
        set_params(project, {"pretrain.seed": str(seed)})
        return list(cast(Any, make_pretraining(project)._loader).batch_sampler)

    set_params(project, {"pretrain.batch_size": "10"})
    assert batches(1) == batches(1) != batches(0)


def test_batches_have_as_many_tokens_as_are_shown(project: Path) -> None:
    set_params(project, {"pretokenize.max_length_quantile": "0.3", "pretrain.batch_size": "10"})
    run_here(STAGES["pretokenize"], project)
    shown = [ids.numel() for ids, *_ in cast(Any, make_pretraining(project)._loader)]
    assert max(shown) < 1.5 * min(shown)


def test_what_is_told_of_pretraining_is_what_its_log_has(project: Path) -> None:
    set_params(project, {"pretrain.batch_size": "10"})
    run_here(STAGES["pretrain"], project)
    log, told = logged(*(project / "runs/pretrain").iterdir()), metric(project, "pretrain")
    assert told["steps"] == len(log["MLM"]) > 1
    assert told["tokens_seen"] == sum(log["tokens"].values())
    curve = pd.read_csv(project / "metrics/plots/pretrain.csv")  # of fewer than 200 steps, each
    assert curve["step"].tolist() == list(log["MLM"])
    for part in ("MLM", "SOP"):
        assert curve[part].tolist() == pytest.approx(list(log[part].values()), abs=1e-5)


def test_the_plan_tells_processes_of_all_hosts_from_those_of_this_one(
    tiny_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiptbert.pretraining.num_processes", lambda: 4)
    monkeypatch.setattr("receiptbert.pretraining.num_processes_here", lambda: 2)
    plan = make_pretraining(tiny_project).plan
    assert (plan.processes, plan.processes_here) == (4, 2)
