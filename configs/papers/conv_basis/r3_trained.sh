#!/bin/sh
# R3 on trained attention, from nothing: trains the model, captures its queries and keys, runs the config.
# From the project's folder; everything goes to runs/conv_basis and results/conv_basis_r3_trained.
set -e
subquad=${SUBQUAD:-./subquad}
here=configs/papers/conv_basis
mkdir -p runs/conv_basis
$subquad train $here/r3_train.yaml --out runs/conv_basis/model
$subquad sample char_lm --n 256 --count 8 --split test > runs/conv_basis/tokens.jsonl
/usr/bin/python3 $here/capture.py runs/conv_basis/model runs/conv_basis/tokens.jsonl runs/conv_basis/capture
$subquad run $here/r3_trained.yaml "$@"
