#!/usr/bin/env python3
"""Prints torch.inc: graphs, tensors and what PyTorch computes for them, for tests/test_reference.c.

usage: make_torch.py >torch.inc     (needs torch; on one thread, so that the f32 sums are reproducible)
"""
import torch
import torch.nn.functional as F

torch.manual_seed(1)
torch.set_num_threads(1)


def numbers(tensor):
    digits, suffix = ("%.17g", "") if tensor.dtype == torch.float64 else ("%.9g", "f")
    lines = [""]
    for value in tensor.flatten().tolist():
        word = digits % value
        word += (suffix if set(word) & set(".e") else ".0" + suffix) + ","
        if len(lines[-1]) + len(word) > 90:
            lines.append("")
        lines[-1] += " " * bool(lines[-1]) + word
    return "\n      ".join(lines)


def case(name, graph, tensors, compute, exact_coordinates=True):
    """`exact_coordinates` False: PyTorch takes other coordinates in f64, so its f32 numbers are expected."""
    f32 = compute(*tensors.values())
    expected = compute(*(t.double() for t in tensors.values())) if exact_coordinates else f32.double()
    print("{\n  .name = \"%s\",\n  .graph =" % name)
    print("\n".join('      "%s\\n"' % line.strip() for line in graph.strip().splitlines()) + ",")
    print("  .tensors = {")
    for key, tensor in tensors.items():
        print("    {\"%s\", (const float[]){\n      %s}}," % (key, numbers(tensor)))
    print("  },\n  .tensor_count = %d,\n  .count = %d," % (len(tensors), f32.numel()))
    print("  .expected = (const double[]){\n      %s}," % numbers(expected))
    if exact_coordinates:
        print("  .f32 = (const float[]){\n      %s}," % numbers(f32))
    print("  .tolerance = %s,\n}," % ("1e-14" if exact_coordinates else "2e-6"))


def bicubic(name, channels, size, new_size):
    (y, x), (v, u) = size, new_size
    case(name, f"""
        input @x : f32[b, c {channels}, y {y}, x {x}]
        %0 = resample @x over (y, x) : f32[b, c {channels}, y {v}, x {u}]
        output forward.y = %0""",
         {"x": torch.rand(1, channels, y, x) * 2 - 1},
         lambda t: F.interpolate(t, new_size, mode="bicubic", align_corners=False), False)


def axis_block(x, scale, shift, w1, b1, w2, b2):
    """The vertical block of a raft layer, written with the published model's reshapes."""
    b, h, w, raft, group = x.shape
    pixels = x.reshape(b, h, w, raft * group)
    plain = F.layer_norm(pixels, (raft * group,), eps=1e-5).reshape(b, h, w, raft, group)
    normal = plain.permute(0, 1, 2, 4, 3) * scale + shift  # b h w group raft
    columns = normal.permute(0, 2, 3, 4, 1).reshape(b, w, group, raft * h)
    change = F.linear(F.gelu(F.linear(columns, w1, b1)), w2, b2)
    return x + change.reshape(b, w, group, raft, h).permute(0, 4, 1, 3, 2)


print("/* torch.inc: made by make_torch.py with PyTorch; entries of the table of Cases in test_reference.c. */")
print("/* clang-format off */")
bicubic("bicubic up, odd sizes", 2, (5, 7), (9, 11))
bicubic("bicubic down, odd sizes", 2, (9, 11), (4, 7))
bicubic("bicubic, one grows and one shrinks", 1, (3, 17), (8, 5))
# Coordinates of this size differ between float and double by what the tolerance tells apart.
bicubic("bicubic, many columns", 1, (1, 97), (1, 224))
case("gelu", """
    input @x : f32[b, c 50]
    %0 = gelu @x : f32[b, c 50]
    output forward.y = %0""",
     {"x": torch.cat([torch.linspace(-6, 6, 40),
                      torch.tensor([-1e4, -50, -20, -13, -9.5, -7, 1e-20, 8, 30, 1e4])])[None]},
     F.gelu)
case("linear", """
    input @x : f32[b, c 40]
    param @w stored [6, 40] : f32[k 6, c 40]
    param @bias stored [6] : f32[k 6]
    %0 = linear @x, @w, @bias over (c) : f32[b, k 6]
    output forward.y = %0""",
     {"x": torch.randn(3, 40), "w": torch.randn(6, 40), "bias": torch.randn(6)}, F.linear)
case("layernorm", """
    input @x : f32[b, c 37]
    param @scale stored [37] : f32[c 37]
    param @shift stored [37] : f32[c 37]
    %0 = layernorm @x, @scale, @shift over (c) eps 1e-05 : f32[b, c 37]
    output forward.y = %0""",
     # the second image is dark: there eps matters
     {"x": torch.randn(3, 37) * torch.tensor([[1], [0.003], [5]]) + torch.tensor([[0.5], [0], [3]]),
      "scale": torch.randn(37), "shift": torch.randn(37)},
     lambda x, scale, shift: F.layer_norm(x, (37,), scale, shift, 1e-5))
case("axis block", """
    input @x : f32[b, h 3, w 4, raft 2, group 4]
    param @scale stored [8] : f32[group 4, raft 2]
    param @shift stored [8] : f32[group 4, raft 2]
    param @w1 stored [12, 6] : f32[k 12, raft 2, h 3]
    param @b1 stored [12] : f32[k 12]
    param @w2 stored [6, 12] : f32[raft 2, h 3, k 12]
    param @b2 stored [6] : f32[raft 2, h 3]
    %0 = layernorm @x, @scale, @shift over (raft, group) eps 1e-05 : f32[b, h 3, w 4, raft 2, group 4]
    %1 = linear %0, @w1, @b1 over (raft, h) : f32[b, w 4, group 4, k 12]
    %2 = gelu %1 : f32[b, w 4, group 4, k 12]
    %3 = linear %2, @w2, @b2 over (k) : f32[b, w 4, group 4, raft 2, h 3]
    %4 = add @x, %3 : f32[b, h 3, w 4, raft 2, group 4]
    output forward.y = %4""",
     {"x": torch.randn(1, 3, 4, 2, 4), "scale": torch.randn(4, 2), "shift": torch.randn(4, 2),
      "w1": torch.randn(12, 6), "b1": torch.randn(12), "w2": torch.randn(6, 12), "b2": torch.randn(6)},
     axis_block)
