#!/bin/sh
# Makes the model of Tables 2 and 5, then decodes with it. From the project's folder; the model goes to
# results/linear_transformers_cifar, the results where `--out` says.
set -e
subquad=${SUBQUAD:-./subquad}
here=configs/papers/linear_transformers
$subquad train $here/cifar_model.yaml --out results/linear_transformers_cifar/model
$subquad run $here/cifar.yaml "$@"
