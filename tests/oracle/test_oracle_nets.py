"""Sparse multiplication, rows, taps, schedules."""

from __future__ import annotations

import pytest
import torch
from test_oracle_counts import csr_rows

from trifold.errors import SpecError
from trifold.nets import MLP, RowsLinear, sparse_matmul
from trifold.records import Batch, Progress, Rows
from trifold.schedule import Constant, Cosine, Ramp, weight_now


def sparse_values(n: int = 9, g: int = 13) -> torch.Tensor:
    x = torch.randn(n, g, dtype=torch.float64) * (torch.rand(n, g) < 0.3)
    x[2], x[-1], x[:, 4] = 0, 0, 0  # empty rows (the last one too) and an empty column
    return x


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_sparse_matmul_and_its_gradient_equal_the_dense_product(dtype, tolerance):
    x = sparse_values().to(dtype)
    weight = torch.randn(13, 5, dtype=dtype, requires_grad=True)
    up = torch.randn(9, 5, dtype=dtype)
    got = sparse_matmul(csr_rows(x), weight)
    (gradient,) = torch.autograd.grad((got * up).sum(), weight)
    torch.testing.assert_close(got, x @ weight, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient, x.T @ up, rtol=tolerance, atol=tolerance)


def test_rows_without_a_single_value_multiply_to_zero():
    weight = torch.randn(4, 3, requires_grad=True)
    got = sparse_matmul(csr_rows(torch.zeros(2, 4)), weight)
    got.sum().backward()
    assert (got == 0).all()
    assert (weight.grad == 0).all()


def test_the_operations_on_sparse_rows_equal_those_on_dense_ones():
    x = sparse_values().float().abs()
    sparse, dense = csr_rows(x), Rows.of_dense(x)
    factor = torch.rand(9, 1)
    assert torch.equal(sparse.to_dense(), x)
    assert torch.equal(sparse.map(torch.log1p).to_dense(), dense.map(torch.log1p).to_dense())
    assert torch.equal(sparse.scale(factor).to_dense(), dense.scale(factor).to_dense())
    torch.testing.assert_close(sparse.total(), dense.total())
    for k in (0, 1, 5, 9, 50):
        assert torch.equal(sparse.head(k).to_dense(), dense.head(k).to_dense())
    assert (sparse.sparse, dense.sparse) == (True, False)
    assert sparse.to("cpu").device == dense.device
    with pytest.raises(TypeError, match="dense"):
        dense.csr()


def test_a_batch_under_another_condition_is_a_new_batch():
    batch = Batch(
        Rows.of_dense(torch.ones(3, 2)), torch.ones(3, 1), design={"condition": torch.zeros(3, 2)}, code={"condition": torch.zeros(3)}
    )
    other = batch.under(condition=torch.ones(3, 2), code={"condition": torch.ones(3)})
    assert float(batch.design["condition"].sum() + batch.code["condition"].sum()) == 0
    assert float(other.design["condition"].sum() + other.code["condition"].sum()) == 9
    assert other.head(2).n == 2
    assert other.head(2).design["condition"].shape == (2, 2)
    with pytest.raises(AttributeError):
        batch.size = torch.zeros(3, 1)


def test_a_layer_of_sparse_rows_with_covariates_equals_one_linear_map_of_both():
    x, c, layer = sparse_values().float(), torch.randn(9, 2), RowsLinear(13, 4, covariates=2)
    whole = torch.cat([x, c], 1) @ torch.cat([layer.weight, layer.design]) + layer.bias
    torch.testing.assert_close(layer(csr_rows(x), c), whole)
    with pytest.raises(SpecError, match="covariates of width 2"):
        layer(csr_rows(x))


def test_taps_hold_each_layers_activation_before_dropout():
    net = MLP(3, (5, 4), activation="relu", dropout=0.9).train()
    taps: dict[str, torch.Tensor] = {}
    net(torch.randn(50, 3), taps=taps, name="decoder")
    assert list(taps) == ["decoder.0", "decoder.1"]
    assert taps["decoder.0"].shape == (50, 5)
    assert (taps["decoder.0"] == 0).float().mean() < 0.8  # dropout would have zeroed nine in ten


def test_without_hidden_layers_the_input_and_the_covariates_are_passed_on():
    net, x, c = MLP(3, (), covariates=2), torch.randn(4, 3), torch.randn(4, 2)
    assert torch.equal(net(x, c), torch.cat([x, c], 1))
    assert net.width == 5
    assert torch.equal(MLP(3, ())(Rows.of_dense(x)), x)


def test_glorot_weights_have_the_papers_variance_within_five_percent():
    net = MLP(400, (300,), norm="batch", init="glorot_normal")
    assert net.first.weight.var().item() == pytest.approx(2 / 700, rel=0.05)
    assert net.first.bias is None


@pytest.mark.parametrize("wrong", [{"norm": "group"}, {"activation": "gelo"}, {"init": "zeros"}])
def test_wrong_choices_are_refused_by_name(wrong):
    with pytest.raises(SpecError, match=next(iter(wrong))):
        MLP(3, (4,), **wrong)


def values(schedule) -> list[float]:
    return [round(weight_now(schedule, Progress(step=s, steps=8)), 6) for s in range(10)]


def test_schedules_follow_their_curves_and_stay_at_their_last_value():
    assert values(3) == values(Constant(3.0)) == [3.0] * 10
    assert values(Ramp(2.0, end=0.5)) == [0, 0.5, 1, 1.5, 2, 2, 2, 2, 2, 2]
    assert values(Ramp(1.0, begin=0.25, end=0.5, start=3.0)) == [3, 3, 3, 2, 1, 1, 1, 1, 1, 1]
    assert values(Ramp(1.0, begin=0.5, end=0.5)) == [0] * 4 + [1] * 6
    cosine = values(Cosine(1.0))
    assert cosine[0] == 0
    assert cosine[4] == 0.5
    assert cosine[8:] == [1, 1]
    assert cosine == sorted(cosine)
    assert weight_now(Ramp(4.0), Progress.done()) == 4


@pytest.mark.parametrize("kind", [Ramp, Cosine])
@pytest.mark.parametrize("span", [(-0.1, 0.5), (0.6, 0.5), (0.0, 1.1)])
def test_a_span_outside_training_is_refused(kind, span):
    with pytest.raises(SpecError, match="begin"):
        kind(1.0, begin=span[0], end=span[1])
