#!/bin/sh
# Table A5, mqar, from nothing: trains the model, then its controllers, then decodes under every policy. From
# the project's folder; models go to results/adore_a5, controllers to results/adore_weights, the results
# where `--out` says.
set -e
subquad=${SUBQUAD:-./subquad}
here=configs/papers/adore
$subquad train $here/a5_mqar_train.yaml --out results/adore_a5/mqar
$subquad run $here/a5_mqar_fit.yaml --resume --no-plots
$subquad run $here/a5_mqar.yaml "$@"
