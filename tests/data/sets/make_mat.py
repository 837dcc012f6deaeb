#!/usr/bin/env python3
"""Makes the MATLAB lists of tiny data sets, as scipy writes them, compressed like the published ones.

usage: make_mat.py (in tests/data/sets; needs scipy)
"""
import numpy
from scipy.io import savemat


def cars(name, rows, labelled=True):
    fields = [(f"bbox_{side}", object) for side in ("x1", "y1", "x2", "y2")]
    fields += [("class", object)] * labelled + [("fname", object)]
    annotations = numpy.zeros((1, len(rows)), dtype=fields)
    for i, (label, file) in enumerate(rows):
        box = [numpy.uint16(x) for x in (39, 116, 569, 375)]
        annotations[0, i] = tuple(box + [numpy.uint8(label)] * labelled + [file])
    savemat(name, {"annotations": annotations}, do_compression=True)


def main():
    savemat("imagelabels.mat", {"labels": numpy.array([[3, 1, 2, 2, 3, 1]], numpy.uint8)},
            do_compression=True)
    savemat("setid.mat", {"trnid": numpy.array([[1]], numpy.uint16),
                          "valid": numpy.array([[5, 2]], numpy.uint16),
                          "tstid": numpy.array([[6, 3, 4]], numpy.uint16)}, do_compression=True)
    savemat("setid_outside.mat", {"valid": numpy.array([[5.0, 7.0]]),
                                  "tstid": numpy.array([["a"]])}, do_compression=True)
    cars("cars_train_annos.mat", [(2, "00001.jpg"), (1, "00002.jpg"), (3, "00003.jpg")])
    cars("cars_test_annos_withlabels.mat", [(3, "00001.jpg"), (3, "00002.jpg")])
    cars("cars_unlabelled.mat", [(0, "00001.jpg")], labelled=False)
    cars("cars_outside.mat", [(1, "../00001.jpg")])


main()
