#!/bin/sh
# Table B from nothing: teachers, then their students. See steps.sh.
exec sh configs/papers/sea/steps.sh b_teacher b -- "$@"
