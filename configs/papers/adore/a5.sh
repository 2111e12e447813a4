#!/bin/sh
# Table A5 of a task, mqar or char_lm, from nothing: trains the model, then its controllers, then decodes under
# every policy. From the project's folder: a5.sh TASK [options of the last run]. Models go to
# results/adore_a5, controllers to results/adore_weights, the results where `--out` says.
set -e
subquad=${SUBQUAD:-./subquad}
here=configs/papers/adore
task=$1
shift
$subquad train $here/a5_"$task"_train.yaml --out results/adore_a5/"$task"
$subquad run $here/a5_"$task"_fit.yaml --resume --no-plots
$subquad run $here/a5_"$task".yaml "$@"
