#!/bin/sh
# Makes the model of Tables 1 and 4, then decodes with it. From the project's folder; the model goes to
# results/linear_transformers_mnist, the results where `--out` says.
set -e
subquad=${SUBQUAD:-./subquad}
here=configs/papers/linear_transformers
$subquad train $here/mnist_model.yaml --out results/linear_transformers_mnist/model
$subquad run $here/mnist.yaml "$@"
