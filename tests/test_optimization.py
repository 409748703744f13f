import pytest
import torch
from torch import nn

from receiptbert import BertFinetuneModel, BertModel, Scheduler, get_optimizer


@pytest.fixture
def model() -> BertModel:
    return BertModel(8, 50, 12, 2, 32, 2, act_func="gelu")


def test_every_parameter_is_in_the_group_where_it_belongs(model: BertModel) -> None:
    decayed, spared = get_optimizer(model, weight_decay=0.3).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [{names[parameter] for parameter in group["params"]} for group in (decayed, spared)]
    assert not groups[0] & groups[1]
    assert groups[0] | groups[1] == set(names.values())
    assert sum(len(group["params"]) for group in (decayed, spared)) == len(names)  # the tied matrix once
    assert groups[1] == {name for name in names.values() if name.endswith("bias") or "layer_norm" in name}


def test_without_decay_the_groups_are_the_same(model: BertModel) -> None:
    sizes = [[len(g["params"]) for g in get_optimizer(model, decay).param_groups] for decay in (0.01, 0.0)]
    assert sizes[0] == sizes[1]
    assert len(sizes[0]) == 2


def test_groups_go_by_kind_and_not_by_name() -> None:
    model = nn.ModuleDict({"biased": nn.Linear(2, 2), "norm": nn.Linear(2, 2), "x": nn.LayerNorm(2)})
    decayed, spared = get_optimizer(model).param_groups
    assert [id(p) for p in decayed["params"]] == [id(model["biased"].weight), id(model["norm"].weight)]
    assert len(spared["params"]) == 4


def test_lower_layers_have_lower_rates() -> None:
    classifier = BertFinetuneModel(8, 50, 12, 2, 32, 2, act_func="gelu", num_classes=3)
    optimizer = get_optimizer(classifier, layer_lr_decay=0.5)
    schedule = Scheduler(optimizer, 0.0, 0.8, 0.08, num_warmup_steps=1, num_training_steps=2)
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}
    schedule.step()
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(classifier.parameters()))
    for name, parameter in classifier.named_parameters():
        expected = next(
            rate
            for part, rate in {"embeddings": 0.1, "layers.0.": 0.2, "layers.1.": 0.4, "head": 0.8}.items()
            if part in name
        )
        assert rates[parameter] == pytest.approx(expected)
        spared = name.endswith("bias") or "layer_norm" in name
        assert decays[parameter] == (0.0 if spared else 0.01)


def test_decay_shrinks_weights_apart_from_the_gradient(model: BertModel) -> None:
    """Without a gradient by the rate times the decay; as a term of the loss it would go through Adam."""
    optimizer = get_optimizer(model, weight_decay=0.3)
    decayed, spared = optimizer.param_groups
    before = {parameter: parameter.detach().clone() for parameter in model.parameters()}
    for parameter in before:
        parameter.grad = torch.zeros_like(parameter)
    for group in (decayed, spared):
        group["lr"] = 0.5
    optimizer.step()
    for parameter in decayed["params"]:
        torch.testing.assert_close(parameter.detach(), before[parameter] * (1 - 0.5 * 0.3))
    assert all(torch.equal(parameter, before[parameter]) for parameter in spared["params"])


def scheduler(warmup: int, steps: int, **kwargs: float) -> Scheduler:
    rates = {"init_lr": 0.1, "peak_lr": 1.1, "final_lr": 0.2} | kwargs
    optimizer = torch.optim.SGD(
        [{"params": [nn.Parameter(torch.zeros(1))]}, {"params": [nn.Parameter(torch.zeros(1))]}], lr=9.0
    )
    return Scheduler(optimizer, **rates, num_warmup_steps=warmup, num_training_steps=steps)


def rates(schedule: Scheduler, steps: int) -> list[float]:
    """The rate of each step, and the one after the last."""
    values = []
    for _ in range(steps + 1):
        first, second = schedule.get_last_lr()
        assert first == second
        values.append(first)
        schedule.step()
    return values


def test_corners_of_the_triangle() -> None:
    values = rates(scheduler(warmup=10, steps=100), 100)
    assert values[0] == pytest.approx(0.1)
    assert values[5] == pytest.approx(0.6)
    assert values[10] == pytest.approx(1.1) == max(values)
    assert values[55] == pytest.approx((1.1 + 0.2) / 2)
    assert values[100] == pytest.approx(0.2)


def test_last_batch_is_trained_at_more_than_the_final_rate() -> None:
    values = rates(scheduler(warmup=10, steps=100, final_lr=0.0), 100)
    assert values[99] == pytest.approx(1.1 / 90)
    assert min(values) >= 0


def test_without_warmup_it_starts_at_the_peak_and_afterwards_it_stays_final() -> None:
    schedule = scheduler(warmup=0, steps=4)
    values = rates(schedule, 8)
    assert values[0] == pytest.approx(1.1)
    assert values[4:] == pytest.approx([0.2] * 5)


def test_a_rate_that_is_a_tensor_is_filled_in_place() -> None:
    """A recorded step reads it there."""
    rate = torch.tensor(9.0)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)
    schedule = Scheduler(optimizer, 0.0, 0.8, 0.0, num_warmup_steps=2, num_training_steps=4)
    assert rate.item() == 0
    schedule.step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.4)


def test_a_warmup_longer_than_the_training_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        scheduler(warmup=5, steps=5)
