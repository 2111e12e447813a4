#!/bin/sh
# Table A1 of a whole model from nothing: makes the model, then decodes with it. From the project's folder;
# the model goes to results/adore_a1, the results where `--out` says.
set -e
subquad=${SUBQUAD:-./subquad}
here=configs/papers/adore
$subquad train $here/a1_model_train.yaml --out results/adore_a1/model
$subquad run $here/a1_model.yaml "$@"
