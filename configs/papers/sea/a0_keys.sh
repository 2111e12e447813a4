#!/bin/sh
# Table A0 against the number of keys: the students of a0.sh, trained if one is missing, at other numbers.
set -e
for student in 512-1 512-2 512-3 1024-1 1024-2 1024-3; do
  if [ ! -f results/sea_a0/sea-$student.safetensors ]; then
    sh configs/papers/sea/a0.sh --no-plots
    break
  fi
done
exec sh configs/papers/sea/steps.sh a0_keys -- "$@"
