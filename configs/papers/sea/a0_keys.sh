#!/bin/sh
# Table A0 against the number of keys, from nothing: the teachers and students of a0.sh, then this. What was
# trained already stays.
set -e
subquad=${SUBQUAD:-./subquad}
here=configs/papers/sea
if [ ! -f results/sea_a0/sea-1024-3.safetensors ]; then
  SUBQUAD=$subquad sh $here/a0.sh --no-plots
fi
$subquad run $here/a0_keys.yaml "$@"
