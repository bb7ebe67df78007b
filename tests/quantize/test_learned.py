"""Named quantizers over explicit codebooks, against what their papers compute, written again."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from smalti.quantize import Parallel, Quantize, Residual, create


def test_dac_is_a_chain_of_projected_cosine_codes() -> None:
    torch.manual_seed(0)
    quantizer = create("dac", dim=12, codes=40, levels=3, code_dim=4).eval()
    assert isinstance(quantizer, Residual)
    z = torch.randn(2, 9, 12, requires_grad=True)
    rest, total, codes = z, torch.zeros_like(z), []
    loss = z.new_zeros(())
    for level in quantizer.levels:
        assert isinstance(level, Quantize)
        x, table = level.before(rest), level.codebooks()[0]
        index = (F.normalize(x.double(), dim=-1) @ F.normalize(table.double(), dim=-1).t()).argmax(-1)
        e = table[index]
        loss = loss + F.mse_loss(e, x.detach()) + 0.25 * F.mse_loss(x, e.detach())
        q = level.after(x + (e - x).detach())
        total, rest = total + q, rest - q
        codes.append(index)
    out = quantizer(z)
    assert torch.equal(out.codes, torch.stack(codes, -1))
    assert torch.allclose(out.z, total, atol=1e-5) and torch.allclose(out.loss, loss, atol=1e-5)
    cotangent = torch.randn_like(z)
    ours = torch.autograd.grad((out.z * cotangent).sum() + out.loss, z)[0]
    theirs = torch.autograd.grad((total * cotangent).sum() + loss, z)[0]
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_mimi_s_acoustic_part_does_not_see_what_the_semantic_one_left() -> None:
    torch.manual_seed(0)
    quantizer = create("mimi", dim=12, codes=30, levels=4, code_dim=5).train()
    for _ in range(3):
        quantizer(torch.randn(2, 40, 12))
        quantizer.update()
    quantizer.eval()
    assert isinstance(quantizer, Parallel)
    z, total, codes = torch.randn(2, 9, 12), torch.zeros(2, 9, 12), []
    for part in quantizer.parts:
        assert isinstance(part, Residual)
        rest = part.before(z)
        chosen = torch.zeros_like(rest)
        for table in part.codebooks():
            index = torch.cdist(rest.double(), table.double()[None]).argmin(-1)
            codes.append(index)
            chosen, rest = chosen + table[index], rest - table[index]
        total = total + part.after(chosen)
    out = quantizer(z)
    assert len(codes) == 4 and torch.equal(out.codes, torch.stack(codes, -1))
    assert torch.allclose(out.z, total, atol=1e-5)
    # The semantic slot alone, whatever the others say.
    semantic = quantizer.parts[0].decode(out.codes[..., :1])
    assert torch.allclose(semantic, quantizer.parts[0].after(quantizer.lookup(out.codes)[..., 0, :]), atol=1e-5)


def test_vqrae_s_codes_have_more_dimensions_than_its_features() -> None:
    quantizer = create("vqrae", dim=12, codes=30)
    assert quantizer.codebooks()[0].shape == (30, 16) and quantizer.dim == 12
    frozen = {name for name, _ in quantizer.named_buffers()}
    assert "alphabet.vectors.weight" in frozen  # the table; only its map learns


def test_fvq_s_residual_form_learns_from_partial_sums() -> None:
    torch.manual_seed(0)
    quantizer = create("residual-fvq", dim=6, codes=16, levels=3, patch=2, head_dim=8)
    for parameter in quantizer.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    assert isinstance(quantizer, Residual)
    z = torch.randn(2, 7, 6, requires_grad=True)
    table = quantizer.codebooks()[0]
    rest, total, partials = z.detach(), torch.zeros(2, 7, 6), []
    for _ in range(3):
        q = table[torch.cdist(rest, table[None]).argmin(-1)]
        total, rest = total + q, rest - q.detach()
        partials.append(total)
    loss = sum(F.mse_loss(p, z.detach()) + 0.25 * F.mse_loss(z, p.detach()) for p in partials) / 3
    out = quantizer(z)
    assert torch.allclose(out.z, total, atol=1e-5) and torch.allclose(out.loss, loss, atol=1e-5)
    wanted = [z, *quantizer.parameters()]
    ours = torch.autograd.grad(out.loss, wanted, allow_unused=True)
    theirs = torch.autograd.grad(loss, wanted, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None and other is None) or torch.allclose(one, other, atol=1e-5)


def test_neurorvq_s_loss_and_gradient_are_those_of_its_sheet() -> None:
    torch.manual_seed(0)
    quantizer = create("neurorvq", dim=5, codes=20, levels=3, kmeans_iterations=0)
    z, upstream = torch.randn(2, 9, 5, requires_grad=True), torch.randn(2, 9, 5)
    out = quantizer(z)
    x = z.detach().double().requires_grad_()
    rest, total, loss, codes = x, torch.zeros_like(x), x.new_zeros(()), []
    for table in quantizer.codebooks():
        unit, rows = F.normalize(rest, dim=-1), F.normalize(table.double(), dim=-1)
        codes.append((unit @ rows.t()).argmax(-1))
        e = rows[codes[-1]]
        q = unit + (e - unit).detach()
        left = rest - q
        loss = loss + (e.detach() - unit).square().mean() + 0.4 * (q - left.detach()).square().mean()
        total, rest = total + q, left
    loss = loss / 3
    assert torch.equal(out.codes, torch.stack(codes, -1))
    assert torch.allclose(out.z.double(), total, atol=1e-5) and torch.allclose(out.loss.double(), loss, atol=1e-6)
    ours = torch.autograd.grad((out.z * upstream).sum() + out.loss, z)[0]
    theirs = torch.autograd.grad((total * upstream).sum() + loss, x)[0]
    assert torch.allclose(ours.double(), theirs, atol=1e-4)


def test_vq_vla_s_levels_rotate_and_forget_fast() -> None:
    torch.manual_seed(0)
    quantizer = create("vq-vla", dim=5, codes=6, levels=2, kmeans_iterations=0).train()
    assert create("vq-vla").vocab == (256,) * 4
    tables = [table.double().clone() for table in quantizer.codebooks()]
    z, upstream = torch.randn(2, 40, 5, requires_grad=True), torch.randn(2, 40, 5)
    out = quantizer(z)
    x = z.detach().double().flatten(0, 1).requires_grad_()
    rest, total, loss, after = x, torch.zeros_like(x), x.new_zeros(()), []
    for table in tables:
        code = torch.cdist(rest, table).argmin(1)
        e = table[code]
        loss = loss + (e - rest).square().mean()
        u, v = F.normalize(rest, dim=1).detach(), F.normalize(e, dim=1)
        w = F.normalize(u + v, dim=1)
        turned = rest - 2 * (rest * w).sum(1, keepdim=True) * w + 2 * (rest * u).sum(1, keepdim=True) * v
        q = turned * (e.norm(dim=1, keepdim=True) / rest.norm(dim=1, keepdim=True)).detach()
        # Counts start at one each, and the sums at the rows.
        chosen = F.one_hot(code, 6).double()
        counts, sums = 0.8 + 0.2 * chosen.sum(0), 0.8 * table + 0.2 * chosen.t() @ rest.detach()
        smoothed = (counts + 1e-5) / (counts.sum() + 6e-5) * counts.sum()
        after.append(sums / smoothed[:, None])
        total, rest = total + q, rest - q.detach()
    assert torch.allclose(out.z.double().flatten(0, 1), total, atol=1e-5)
    assert torch.allclose(out.loss.double(), loss, atol=1e-5)
    ours = torch.autograd.grad((out.z * upstream).sum() + out.loss, z)[0]
    theirs = torch.autograd.grad((total * upstream.double().flatten(0, 1)).sum() + loss, x)[0]
    assert torch.allclose(ours.double().flatten(0, 1), theirs, atol=1e-4)
    quantizer.update()
    for ours, theirs in zip(quantizer.codebooks(), after, strict=True):
        assert torch.allclose(ours.double(), theirs, atol=1e-5)
