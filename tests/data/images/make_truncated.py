#!/usr/bin/env python3
"""Makes truncated.safetensors: what Pillow gives of files that end too early, u8[height, width, 3].

usage: make_truncated.py (in tests/data/images)     "FILE SIZE": the first SIZE bytes of FILE
"""
import io
import json
import struct

import numpy
from PIL import Image, ImageFile

ImageFile.LOAD_TRUNCATED_IMAGES = True
PARTS = [("rgb420.jpg", .8), ("rgb420.jpg", .95), ("progressive.jpg", .7), ("grey.jpg", .9),
         ("rgb8.png", .6), ("source.png", .5), ("rgb8_interlaced.png", .6)]


def main():
    header, data = {}, b""
    for name, share in PARTS:
        whole = open(name, "rb").read()
        size = int(len(whole) * share)
        image = Image.open(io.BytesIO(whole[:size])).convert("RGB")
        pixels = numpy.asarray(image)
        header[f"{name} {size}"] = {"dtype": "U8", "shape": list(pixels.shape),
                                    "data_offsets": [len(data), len(data) + pixels.size]}
        data += pixels.tobytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open("truncated.safetensors", "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text + data)


main()
