#!/bin/sh
# R6 from nothing: trains a model of recall and a classifier, then puts k columns in the place of their
# attention. From the project's folder; the models go to runs/conv_basis/r6_*, results where `--out` says.
set -e
subquad=${SUBQUAD:-./subquad}
here=configs/papers/conv_basis
$subquad train $here/r6_train.yaml --filter task=mqar --out runs/conv_basis/r6_recall
$subquad train $here/r6_train.yaml --filter task=text_majority --out runs/conv_basis/r6_text
$subquad run $here/r6.yaml "$@"
