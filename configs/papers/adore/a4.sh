#!/bin/sh
# Table A4 from nothing: trains the controllers, then compares them. From the project's folder; the
# controllers go to results/adore_weights, the comparison where `--out` says.
set -e
subquad=${SUBQUAD:-./subquad}
here=configs/papers/adore
$subquad run $here/a4_fit.yaml --resume --no-plots
$subquad run $here/a4.yaml "$@"
