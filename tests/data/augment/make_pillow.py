#!/usr/bin/env python3
"""Makes pillow.safetensors: what Pillow makes of two small pictures by every operation of RandAugment.

usage: make_pillow.py PHOTOGRAPH OUT.safetensors     (the numbers in the repository: Pillow 13)

Tensors, u8[height, width, 3]: "PICTURE" itself, "PICTURE OPERATION STEP SIGN" for step 1, 5, 9 and
both signs where the operation has one, "PICTURE enhance NAME FACTOR" for colour jitter's factors.
"""
import json
import struct
import sys

import numpy
from PIL import Image, ImageEnhance, ImageOps

FILL = (128, 128, 128)


def affine(image, matrix, how):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, how, fillcolor=FILL)


def rotate(image, degrees):
    turned = image.convert("RGBA").rotate(degrees)
    return Image.composite(turned, Image.new("RGBA", turned.size, (128,) * 4), turned).convert("RGB")


CUBIC, NEAREST = Image.Resampling.BICUBIC, Image.Resampling.NEAREST
SIGNED = {
    "shear_x": lambda m, s: affine(m, (1, 0.3 * s, 0, 0, 1, 0), CUBIC),
    "shear_y": lambda m, s: affine(m, (1, 0, 0, 0.3 * s, 1, 0), CUBIC),
    "translate_x": lambda m, s: affine(m, (1, 0, 150 / 331 * s * m.size[0], 0, 1, 0), NEAREST),
    "translate_y": lambda m, s: affine(m, (1, 0, 0, 0, 1, 150 / 331 * s * m.size[1]), NEAREST),
    "color": lambda m, s: ImageEnhance.Color(m).enhance(1 + 0.9 * s),
    "contrast": lambda m, s: ImageEnhance.Contrast(m).enhance(1 + 0.9 * s),
    "brightness": lambda m, s: ImageEnhance.Brightness(m).enhance(1 + 0.9 * s),
    "sharpness": lambda m, s: ImageEnhance.Sharpness(m).enhance(1 + 0.9 * s),
}
UNSIGNED = {
    "rotate": lambda m, s: rotate(m, 30 * s),
    "posterize": lambda m, s: ImageOps.posterize(m, int(numpy.round(8 - 4 * s))),
    "solarize": lambda m, s: ImageOps.solarize(m, 256 - 256 * s),
}
PLAIN = {"autocontrast": ImageOps.autocontrast, "equalize": ImageOps.equalize, "invert": ImageOps.invert}
ENHANCE = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast,
           "saturation": ImageEnhance.Color}


def pictures(photograph):
    photo = Image.open(photograph).convert("RGB")
    yield "photo", photo.resize((25, 20), Image.Resampling.LANCZOS)
    # Few values, one channel constant: what autocontrast and equalize treat apart.
    rows, columns = numpy.mgrid[0:17, 0:22]
    flat = numpy.stack([100 + (rows * columns) % 7, numpy.full((17, 22), 9), 250 - columns // 3], 2)
    yield "flat", Image.fromarray(flat.astype(numpy.uint8))


def all_tensors(photograph):
    for name, image in pictures(photograph):
        yield name, image
        for op, make in SIGNED.items():
            for step in (1, 5, 9):
                yield f"{name} {op} {step} +", make(image, step / 9)
                yield f"{name} {op} {step} -", make(image, -step / 9)
        for op, make in UNSIGNED.items():
            for step in (1, 5, 9):
                yield f"{name} {op} {step} +", make(image, step / 9)
        for op, make in PLAIN.items():
            yield f"{name} {op} 1 +", make(image)
        for op, make in ENHANCE.items():
            for factor in (0, 0.6, 0.93, 1, 1.4):
                yield f"{name} enhance {op} {factor}", make(image).enhance(factor)


def main():
    header, data = {}, b""
    for name, image in all_tensors(sys.argv[1]):
        pixels = numpy.asarray(image)
        header[name] = {"dtype": "U8", "shape": list(pixels.shape),
                        "data_offsets": [len(data), len(data) + pixels.size]}
        data += pixels.tobytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(sys.argv[2], "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text + data)


main()
