"""Every method: its files, its ablations, and its loss against an independent dense implementation."""

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from test_merge import merging, short
from torch.func import functional_call

from lorabench.adapters import Gates
from lorabench.errors import UserError
from lorabench.method import CONF, Method, Site, build, fitting_methods, load, methods
from lorabench.methods.duolora import dominant_adapter

LEARNED = ("ziplora", "ziprank", "duolora")


def test_every_method_has_its_yaml_and_every_yaml_its_paper() -> None:
    yamls: dict[str, Any] = {path.stem: OmegaConf.load(path) for path in (CONF / "method").glob("*.yaml")}
    assert set(yamls) == set(methods())
    assert all("paper" in values and f"schema/{values.name}" in values.defaults for values in yamls.values())


def test_every_ablation_changes_little_and_fits_something() -> None:
    for path in (CONF / "ablation").glob("*.yaml"):
        assert path.read_text().startswith("# @package method\n")
        assert len(OmegaConf.load(path)) <= 3 and (path.stem == "none") == (len(OmegaConf.load(path)) == 0)
        assert fitting_methods(path.stem)


def test_an_ablation_of_another_method_does_not_fit() -> None:
    assert fitting_methods("no_cycle") == ["duolora"]
    assert fitting_methods("none") == list(methods())
    with pytest.raises(UserError, match="no_cycle fits method=duolora"):
        load("ziplora", "no_cycle")
    with pytest.raises(UserError, match="no method is called"):
        load("ziplore")
    with pytest.raises(UserError, match="no ablation is called"):
        load("duolora", "no_circle")


def test_a_method_is_built_from_plain_values_too() -> None:
    method = load("duolora", "no_cycle")
    values: Any = OmegaConf.to_container(OmegaConf.structured(method))
    assert build(values) == method


@pytest.mark.parametrize(
    ("name", "ablation", "terms", "forwards"),
    [
        ("ziplora", "none", {"content", "style", "similarity"}, 2),
        ("ziprank", "none", {"content", "style"}, 2),
        ("duolora", "none", {"content", "style", "style_cycle", "content_cycle", "prior"}, 3),
        ("duolora", "no_cycle", {"content", "style", "prior"}, 2),
        ("duolora", "no_style_cycle", {"content", "style", "content_cycle", "prior"}, 3),
        ("duolora", "no_content_cycle", {"content", "style", "style_cycle", "prior"}, 3),
        ("duolora", "no_layer_prior", {"content", "style", "style_cycle", "content_cycle"}, 3),
        ("duolora", "no_prior_init", {"content", "style", "style_cycle", "content_cycle", "prior"}, 3),
        ("duolora", "no_rank_constraint", {"content", "style", "style_cycle", "content_cycle"}, 3),
    ],
)
def test_terms_and_forwards_of_a_step(model, loras, pair, name, ablation, terms, forwards) -> None:
    module = merging(model, loras, pair, short(name, ablation))
    count = []
    hook = model.unet.register_forward_hook(lambda *_: count.append(1))
    assert set(module.loss(0)) == terms and len(count) == forwards
    hook.remove()
    module.adapters.detach()


class Dense:
    """Predictions with the updates formed in full, one pass at a time: nothing of our adapters is used."""

    def __init__(self, module, loras):
        self.module, self.loras = module, loras
        module.adapters.detach()
        self.weights = dict(module.model.unet.named_parameters())
        self.masks = [[next(iter(gate.named().items())) for gate in module.gates[site]] for site in loras[0]]
        self.leaves = [[mask.detach().clone().requires_grad_(True) for _, mask in each] for each in self.masks]

    def predict(self, noised, merged: bool = False, content: bool = False, style: bool = False):
        weights = {}
        for site, masks, leaves in zip(self.loras[0], self.masks, self.leaves, strict=True):
            updates = []
            for lora, (kind, _), m in zip(self.loras, masks, leaves, strict=True):
                up, down = lora[site].up, lora[site].down
                masked = {
                    "r": lambda up=up, down=down, m=m: up @ m.diag() @ down,
                    "i": lambda up=up, down=down, m=m: (up @ down) @ m.diag(),
                    "o": lambda up=up, down=down, m=m: m.diag() @ (up @ down),
                }[kind]
                updates.append(masked() if merged else up @ down)
            used: Any = [update for update, on in zip(updates, (merged or content, merged or style), strict=True) if on]
            weights[f"{site}.weight"] = self.weights[f"{site}.weight"] + sum(used)
        t, model = self.module.draw(0).t, self.module.model
        added = {"text_embeds": noised.prompt.pooled, "time_ids": model.time_ids(len(noised.x))}
        arguments = (noised.x, t, noised.prompt.embeds)
        options = {"added_cond_kwargs": added, "return_dict": False}
        return functional_call(model.unet, weights, arguments, options)[0]


def mse(left, right):
    return ((left - right) ** 2).mean()


def reconstruction(dense, step) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        e_c, e_s = dense.predict(step.content, content=True), dense.predict(step.style, style=True)
    return {
        "content": mse(dense.predict(step.content, merged=True), e_c),
        "style": mse(dense.predict(step.style, merged=True), e_s),
    }


def ziplora_terms(dense, step, method):
    products = torch.stack([(m_c * m_s).abs().mean() for m_c, m_s in dense.leaves])
    return {**reconstruction(dense, step), "similarity": method.similarity * products.mean()}


def duolora_terms(dense, step, method):
    terms = reconstruction(dense, step)
    model, t = dense.module.model, step.t
    alpha_bar = model.pipeline.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    a, b = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    for name, noised, alone in (("style_cycle", step.content, "content"), ("content_cycle", step.style, "style")):
        v = dense.predict(noised.under(step.both), merged=True)
        clean = a * noised.x - b * v
        back = dense.predict(type(noised)(a * clean + b * step.noise, noised.prompt), **{alone: True})
        with torch.no_grad():
            target = dense.predict(noised, **{alone: True})
        terms[name] = 0.01 * mse(back, target)
    layers = []
    for site, (m_c, m_s) in zip(dense.loras[0], dense.leaves, strict=True):
        block = site.split(".attentions")[0]
        low = block in ("down_blocks.2", "mid_block", "up_blocks.0")
        dominant, minor = (m_c, m_s) if low else (m_s, m_c)
        nuclear = [torch.linalg.matrix_norm(m.diag(), "nuc") for m in (dominant, minor)]
        hinge = torch.clamp(nuclear[1] - nuclear[0], min=0)
        layers.append((dominant.abs().sum() + method.prior_hinge * hinge) / 3)
    terms["prior"] = 0.1 * torch.stack(layers).mean()
    return terms


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("ziplora", {"mask_dim": "in"}, ziplora_terms),
        ("ziplora", {"mask_dim": "out"}, ziplora_terms),
        ("ziprank", {}, lambda dense, step, method: reconstruction(dense, step)),
        ("duolora", {}, duolora_terms),
    ],
)
def test_every_term_and_its_gradient_equal_the_dense_formula(model, loras, pair, name, overrides, expected) -> None:
    method = load(name, fit={"steps": 1, "lr": 0.01, "batch": 2}, **overrides)
    module = merging(model, loras, pair, method)
    torch.manual_seed(0)
    with torch.no_grad():
        for gate in module.learned:
            gate.copy_(torch.randn_like(gate))  # away from ones, with both signs
    step = module.draw(0)
    ours = module.loss(0)
    torch.stack(list(ours.values())).sum().backward()
    dense = Dense(module, loras)
    theirs = expected(dense, step, method)
    torch.stack(list(theirs.values())).sum().backward()
    assert ours.keys() == theirs.keys()
    for term in ours:
        torch.testing.assert_close(ours[term], theirs[term], rtol=1e-5, atol=1e-5)
    gradients = [leaf.grad for leaves in dense.leaves for leaf in leaves]
    for gate, gradient in zip(module.learned, gradients, strict=True):
        torch.testing.assert_close(gate.grad, gradient, rtol=1e-3, atol=1e-5)


def start(method: Method, site: Site, seed: int = 0) -> tuple[Gates, ...]:
    gates = method.gates(site, seed)
    assert gates is not None
    return gates


def site(depth: float, ranks: tuple[int, int] = (8, 8)) -> Site:
    return Site("a.layer", 4, 4, ranks, depth)


def test_duolora_starts_with_more_ones_in_the_dominant_mask() -> None:
    method = load("duolora", dominant_ones=0.75, minor_ones=0.25)
    for depth, ones in ((1.0, [6, 2]), (0.0, [2, 6]), (0.5, [8, 8])):
        gates = start(method, site(depth), 1)
        assert [int(gate.only().sum()) for gate in gates] == ones
        assert all(set(gate.only().tolist()) <= {0.0, 1.0} for gate in gates)
        again = start(method, site(depth), 1)
        assert all(torch.equal(left.only(), right.only()) for left, right in zip(gates, again, strict=True))
    assert not torch.equal(start(method, site(1.0), 1)[0].only(), start(method, site(1.0), 2)[0].only())
    assert all((gate.only() == 1).all() for gate in start(load("duolora", "no_prior_init"), site(1.0)))


def test_the_dominant_adapter_follows_the_resolution() -> None:
    assert [dominant_adapter(site(depth)) for depth in (1.0, 0.0, 0.5)] == [0, 1, None]


def test_zip_masks_have_the_size_of_the_papers_dimension() -> None:
    layer = Site("a.layer", 4, 6, (3, 2), 0.0)
    assert [tuple(gate.only().shape) for gate in start(load("ziplora"), layer)] == [(4,), (4,)]
    assert [tuple(gate.only().shape) for gate in start(load("ziplora", mask_dim="out"), layer)] == [(6,), (6,)]
    assert [tuple(gate.only().shape) for gate in start(load("ziprank"), layer)] == [(3,), (2,)]


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match="mask_dim=rows"):
        load("ziplora", mask_dim="rows")
    with pytest.raises(UserError, match="minor_ones=2"):
        load("duolora", minor_ones=2.0)
