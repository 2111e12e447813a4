#!/bin/sh
# Runs configs of this folder one after the other: steps.sh STEP... -- [options of the last one]. From the
# project's folder. Models go to results/sea_STEP, results of the last step where `--out` says; what earlier
# steps have finished stays.
set -e
subquad=${SUBQUAD:-./subquad}
here=configs/papers/sea
while [ "$2" != -- ]; do
  $subquad run $here/"$1".yaml --resume --no-plots
  shift
done
last=$1
shift 2
$subquad run $here/"$last".yaml "$@"
