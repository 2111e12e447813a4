#!/bin/sh
# Table A0 from nothing: trains the teachers, then their students. From the project's folder; models go to
# results/sea_a0, the students' results where `--out` says.
set -e
subquad=${SUBQUAD:-./subquad}
here=configs/papers/sea
$subquad run $here/a0_start.yaml --resume --no-plots
$subquad run $here/a0_teacher.yaml --resume --no-plots
$subquad run $here/a0.yaml "$@"
