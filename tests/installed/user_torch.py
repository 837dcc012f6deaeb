"""A compiled model as a module of PyTorch, beside PyTorch's own.
usage: user_torch.py LIBRARY WEIGHTS_BLOB SETTINGS, with raft_torch.py and raftmlp_torch.py in PYTHONPATH"""

import sys

import raft_torch
import raftmlp_torch
import torch
import yaml
from refused import refused

library, blob, settings_path = sys.argv[1:]
with open(settings_path) as file:
    settings = {"token_expansion_factor": 2, "channel_expansion_factor": 4} | yaml.safe_load(file)
theirs = raftmlp_torch.RaftMLP(settings, settings["num_classes"]).requires_grad_()
images = raftmlp_torch.filled_input(3, 32, 32)


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The gradients of bench/raftmlp_torch.py by the published names, in the published order."""
    found = {}

    def take(name, weight, bias):
        found[f"{name}.weight"], found[f"{name}.bias"] = weight, bias

    def norm(name, layer, raft=1):
        order = lambda g: g.view(raft, -1).t().reshape(-1)
        take(name, order(layer.weight.grad), order(layer.bias.grad))

    for i, level in enumerate(model.levels):
        parts = [weight.grad.flatten(1) for weight in level.embedding.weights]
        take(f"levels.{i}.fn.0.fc", torch.cat(parts, 1), level.embedding.bias.grad)
        for j, blocks in enumerate(level.layers, 2):
            for k, block in zip((1, 3, 5), blocks):
                name = f"levels.{i}.fn.{j}.{k}"
                raft = getattr(block, "raft", None)
                norm(f"{name}.norm" if raft is None else f"{name}.norm.1", block.norm, raft or 1)
                for number, layer in ((0, block.mlp[0]), (3, block.mlp[2])):
                    take(f"{name}.fn.{number}", layer.weight.grad, layer.bias.grad)
    if model.classifier.weight.grad is not None:
        norm("heads.0.1", model.norm)
        take("classifier", model.classifier.weight.grad, model.classifier.bias.grad)
    return found


def maps_of(model: torch.nn.Module) -> list[torch.Tensor]:
    """The feature maps of the same: the first embedding, and what the later levels give."""
    maps = []
    hook = model.levels[0].embedding.register_forward_hook(
        lambda module, inputs, output: maps.append(output.permute(0, 3, 1, 2))
    )
    x = model.levels[0](images)
    hook.remove()
    for level in model.levels[1:]:
        x = level(x)
        maps.append(x)
    return maps


def close(ours: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> bool:
    return bool((ours - wanted).abs().max() <= tolerance * max(1, wanted.abs().max()))


def check_gradients(ours: raft_torch.Compiled, times: int = 1) -> None:
    """Those of the module are PyTorch's, of all parameters that it trains."""
    wanted, worst = gradients_of(theirs), 0.0
    trained = {name: p for name, p in ours.named_parameters() if p.requires_grad}
    assert set(trained) == set(wanted), set(trained) ^ set(wanted)
    for name, parameter in trained.items():
        difference = (parameter.grad / times - wanted[name]).abs().max()
        worst = max(worst, float(difference / wanted[name].abs().max()))
    print(f"greatest difference of a gradient: {worst:.2g} of the greatest")
    assert worst <= 2e-5, worst


def step_both(ours: raft_torch.Compiled, loss) -> None:
    """Gradients of a loss of what each of the two gives."""
    theirs.zero_grad()
    ours.zero_grad()
    loss(ours(images)).backward()
    loss(maps_of(theirs) if ours.features else theirs(images)).backward()


# The whole model.
target = torch.tensor([1, 7, 3])
cross_entropy = lambda logits: torch.nn.functional.cross_entropy(logits, target)
ours = raft_torch.Compiled(library, weights=blob)
assert close(ours(images), theirs(images), 2e-5)
step_both(ours, cross_entropy)
check_gradients(ours)
keeps = []
keep = ours.keep
ours.keep = lambda *arguments, **names: keeps.append(names["outputs"]) or keep(*arguments, **names)
cross_entropy(ours(images)).backward()  # added to what is there
check_gradients(ours, times=2)
assert keeps == [True], keeps  # nothing was computed twice
first, second = ours(images), ours(images)
ours.zero_grad()
(cross_entropy(first) + cross_entropy(second)).backward()
check_gradients(ours, times=2)
assert keeps == [True, True, True, False], keeps

# Parameters are the library's own memory: the module, the library and an optimiser see the same.
name, parameter = next(ours.named_parameters())
assert parameter.data_ptr() == ours.model.parameter(name).ctypes.data
with torch.no_grad():
    before = ours(images)
    for p in ours.parameters():
        assert p.grad is not None and p.grad.is_contiguous()
    torch.optim.SGD(ours.parameters(), lr=0.1).step()
    after = ours(images)
    assert not torch.equal(before, after)
assert (ours.model.forward(images.numpy()) == after.numpy()).all()
ours.load_state_dict({name: torch.zeros_like(p) for name, p in ours.named_parameters()})
with torch.no_grad():
    assert (ours(images) == 0).all()

loss = cross_entropy(ours(images))
with torch.no_grad():
    parameter += 1
refused(RuntimeError, "modified by an inplace operation", loss.backward)
refused(ValueError, "gradients of the images", lambda: ours(images.clone().requires_grad_()))
refused(ValueError, "the shape", lambda: ours(images[0]))

# A backbone: from gradients of its maps, of which one may be missing, and in any layout.
drawn = [torch.randn(m.shape) for m in maps_of(theirs)]
backbone = raft_torch.Compiled(library, features=True, weights=blob)
for ours_map, wanted in zip(backbone(images), maps_of(theirs)):
    assert close(ours_map, wanted, 1e-4)
step_both(backbone, lambda maps: sum((m * m * d).sum() for m, d in zip(maps, drawn)))
check_gradients(backbone)
step_both(backbone, lambda maps: maps[1].mean((2, 3)).square().sum())
check_gradients(backbone)
with torch.no_grad():
    assert torch.equal(backbone(images)[1], torch.from_numpy(backbone.model.features(images.numpy())[1]))
print("user_torch.py: the gradients are PyTorch's")
