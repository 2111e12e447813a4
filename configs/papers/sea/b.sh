#!/bin/sh
# Table B from nothing: trains the teachers, then their students. From the project's folder; models go to
# results/sea_b, the results where `--out` says.
set -e
subquad=${SUBQUAD:-./subquad}
here=configs/papers/sea
$subquad run $here/b_teacher.yaml --resume --no-plots
$subquad run $here/b.yaml "$@"
