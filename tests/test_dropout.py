import pytest
import torch

from receiptbert.dropout import Dropout


@pytest.mark.parametrize("prob", [0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_asked_and_the_sum_is_kept(prob: float) -> None:
    torch.manual_seed(0)
    dropped = Dropout(prob)(torch.ones(300, 401))  # not a multiple of the draws
    kept = dropped != 0
    assert 1 - kept.float().mean() == pytest.approx(prob, abs=0.005)  # deviation below 0.0015
    assert torch.allclose(dropped[kept], torch.tensor(1 / (1 - prob)))


def test_a_probability_near_one_drops_nearly_all() -> None:
    torch.manual_seed(0)
    assert (Dropout(0.9999999)(torch.ones(300, 401)) != 0).float().mean() < 0.001


def test_neighbours_are_dropped_independently() -> None:
    """Four values come of one draw: they must not have to do with each other."""
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(100_000, 4)) != 0).float()
    assert torch.allclose(torch.corrcoef(kept.T), torch.eye(4), atol=0.02)  # deviation 0.003


def test_gradients_flow_through_what_is_kept() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 7, requires_grad=True)
    dropped = Dropout(0.25)(x)
    dropped.sum().backward()
    assert x.grad is not None
    assert torch.equal(dropped.detach(), x.detach() * x.grad)


def test_nothing_is_dropped_outside_training_or_with_probability_zero() -> None:
    x = torch.randn(5, 5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_elsewhere_than_on_a_cpu_it_is_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr("receiptbert.dropout.F.dropout", lambda x, prob: (asked.append(prob), x)[1])
    x = torch.ones(3, 5, device="meta")
    assert Dropout(0.2)(x) is x
    assert asked == [0.2]


@pytest.mark.parametrize("prob", [-0.1, 1.0])
def test_not_all_can_be_dropped(prob: float) -> None:
    with pytest.raises(ValueError, match="is not from 0 to below 1"):
        Dropout(prob)
